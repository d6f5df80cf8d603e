//go:build e2e

package e2e

import (
	"testing"

	"github.com/cachalot-registry/cachalot/upstream/distributiontest"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

const (
	// Docker Hub and quay.io do not have these repositories: a pull that succeeds came
	// through the mirror.
	repository     = "library/cachalot-e2e"
	quayRepository = "cachalot-e2e/app"
	image          = "docker.io/" + repository + ":latest"

	user, password = "robot", "canary" // if a registry needs them
)

// source is a registry with one image that has two releases.
type source struct {
	*distributiontest.Registry
	distributiontest.Options
	name, repo string
	one, two   release
}

// image is the image's name for clients.
func (s source) image() string { return s.name + "/" + s.repo + ":latest" }

// settings are the mirror's settings for the registry.
func (s source) settings() string {
	if s.Username == "" {
		return "{url: " + s.URL + "}"
	}
	return "{url: " + s.URL + ", username: " + s.Username + ", password: " + s.Password + "}"
}

// sources are two registries that share nothing. One gives tokens without a login and has a
// CDN, the other needs a password.
func sources(t *testing.T, types mediaTypes) []source {
	t.Helper()
	list := []source{{
		Options: distributiontest.Options{Auth: upstreamtest.Bearer, CDN: true},
		name:    "docker.io", repo: repository,
		one: newRelease(t, types, "one"), two: newRelease(t, types, "two"),
	}, {
		Options: distributiontest.Options{Auth: upstreamtest.Basic, Username: user, Password: password},
		name:    "quay.io", repo: quayRepository,
		one: otherRelease(t, types, "three"), two: otherRelease(t, types, "four"),
	}}
	for i := range list {
		list[i].Registry = distributiontest.New(t, list[i].Options)
	}
	return list
}

// upstreams are the sources as a mirror's configuration.
func upstreams(list []source) map[string]string {
	settings := map[string]string{}
	for _, s := range list {
		settings[s.name] = s.settings()
	}
	return settings
}

// publish pushes a release to the tag that clients pull.
func (s source) publish(r release) {
	r.publish(s.Registry, s.repo, "latest")
	s.Forget()
}

// met is the cost of the first contact with the registry, or of the first after a reload.
func (s source) met() wire {
	if s.Auth == upstreamtest.Bearer {
		return wire{Tokens: 1, Refused: 1}
	}
	return wire{Refused: 1}
}

// behind adds the redirects to the CDN, if there is one.
func (s source) behind(w wire) wire {
	if s.CDN {
		w.Redirected = w.Blobs
	}
	return w
}
