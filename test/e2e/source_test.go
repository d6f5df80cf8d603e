//go:build e2e

package e2e

import (
	"testing"

	"github.com/cachalot-registry/cachalot/upstream/distributiontest"
	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

const (
	// Neither Docker Hub nor quay.io has these repositories: what comes of a pull
	// came through the mirror.
	repository     = "library/cachalot-e2e"
	quayRepository = "cachalot-e2e/app"
	image          = "docker.io/" + repository + ":latest"

	user, password = "robot", "canary" // where one is asked for
)

// source is a registry that has one image, which is released twice.
type source struct {
	*distributiontest.Registry
	distributiontest.Options
	name, repo string
	one, two   release
}

// image is its name, for clients.
func (s source) image() string { return s.name + "/" + s.repo + ":latest" }

// settings are those of the mirror for it.
func (s source) settings() string {
	if s.Username == "" {
		return "{url: " + s.URL + "}"
	}
	return "{url: " + s.URL + ", username: " + s.Username + ", password: " + s.Password + "}"
}

// sources are two registries that share nothing: one gives tokens to everybody
// and keeps its blobs at a CDN, the other asks for a password.
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

// upstreams are the sources as a mirror is configured with them.
func upstreams(list []source) map[string]string {
	settings := map[string]string{}
	for _, s := range list {
		settings[s.name] = s.settings()
	}
	return settings
}

// publish pushes a release where clients look for it.
func (s source) publish(r release) {
	r.publish(s.Registry, s.repo, "latest")
	s.Forget()
}

// met is what it costs to meet the registry, or to meet it again after the
// mirror has forgotten its tokens.
func (s source) met() wire {
	if s.Auth == upstreamtest.Bearer {
		return wire{Tokens: 1, Refused: 1}
	}
	return wire{Refused: 1}
}

// behind moves a cost to the CDN, if there is one.
func (s source) behind(w wire) wire {
	if s.CDN {
		w.Redirected = w.Blobs
	}
	return w
}
