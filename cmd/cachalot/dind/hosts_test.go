package dind

import (
	"strings"
	"testing"
)

const certs = "/etc/docker/certs.d/"

func TestHosts(t *testing.T) {
	t.Parallel()
	asked := []string{hubFlag}
	user := map[string]string{certs + "_default/hosts.toml": "# mine\n"}
	checkAll(t, []scene{
		{
			name: "referrers", version: "29.1.0", wantArgs: asked, wantLog: usual(),
			wantFiles: map[string]string{defaultFile: `"referrers"]`, itselfFile: "", buildxFile: ""},
		},
		{
			name: "a path", env: []string{"CACHALOT_MIRROR=https://mirror/below"}, wantArgs: []string{"--registry-mirror=https://mirror/below"},
			wantFiles: map[string]string{defaultFile: `[host."https://mirror/below"]`, certs + "mirror/hosts.toml": "server = \"https://mirror\"\n"},
			wantLog: []string{
				"dockerd asks https://mirror/below first for images of all registries, then the registry itself",
				"warning: new builders of docker buildx do not ask the mirror: BuildKit puts a path after /v2; write a URL without one",
			},
		},
		{
			name: "rootless", uid: 1000, wantArgs: asked,
			wantFiles: map[string]string{
				"/home/me/.config/docker/certs.d/_default/hosts.toml":     mirrorURL,
				"/home/me/.config/docker/certs.d/mirror_5000_/hosts.toml": mirrorURL,
				"/home/me/.docker/buildx/buildkitd.default.toml":          "mirror:5000/quay.io",
			},
			wantLog: []string{askedFirst, strings.ReplaceAll(buildersAsk, "/root", "/home/me")},
		},
		{
			name: "rootless with XDG", uid: 1000, env: []string{"XDG_CONFIG_HOME=/xdg"}, wantArgs: asked,
			wantFiles: map[string]string{
				"/xdg/docker/certs.d/_default/hosts.toml": "", "/xdg/docker/certs.d/mirror_5000_/hosts.toml": "",
				"/home/me/.docker/buildx/buildkitd.default.toml": "",
			},
			wantLog: []string{askedFirst, strings.ReplaceAll(buildersAsk, "/root", "/home/me")},
		},
		{
			name: "root has no XDG", env: []string{"XDG_CONFIG_HOME=/xdg"}, wantArgs: asked, wantLog: usual(),
			wantFiles: map[string]string{defaultFile: "", itselfFile: "", buildxFile: ""},
		},
		{
			name: "a user's _default", there: user, env: []string{"CI_REGISTRY=ci.example"}, wantArgs: asked, wantFiles: map[string]string{buildxFile: ""},
			wantLog: []string{"warning: /etc/docker/certs.d/_default exists and stays: dockerd asks the servers in it, not http://mirror:5000", buildersAsk},
		},
		{
			name: "a user's _default has a CA alone", there: map[string]string{certs + "_default/ca.crt": ""}, wantArgs: asked, wantFiles: map[string]string{buildxFile: ""},
			wantLog: []string{"warning: /etc/docker/certs.d/_default exists and stays: dockerd asks the servers in it, not http://mirror:5000", buildersAsk},
		},
		{
			name: "a user's _default, classic", there: user, args: []string{"-svfs"}, wantArgs: []string{"-svfs", hubFlag}, wantFiles: map[string]string{buildxFile: ""},
			wantLog: []string{
				"warning: /etc/docker/certs.d/_default exists and stays: dockerd asks the servers in it, not http://mirror:5000",
				"docker pull and docker run ask http://mirror:5000 first for images of Docker Hub", buildersAsk,
			},
		},
		{
			name: "ours", there: map[string]string{defaultFile: marker + "old", itselfFile: marker + "old", certs + "gone_1_/hosts.toml": marker},
			wantArgs: asked, wantLog: usual(), wantFiles: map[string]string{defaultFile: mirrorURL, itselfFile: mirrorURL, buildxFile: ""},
		},
		{
			name: "a user's folders", wantArgs: asked, env: []string{"CI_REGISTRY=ci.example:5050"},
			there: map[string]string{
				certs + "ci.example:5050/ca.crt": "", certs + "harbor.example/hosts.toml": "server = 'x'", certs + "mirror:5000/ca.crt": "",
			},
			wantFiles: map[string]string{defaultFile: "", buildxFile: ""},
			wantLog: usual("images of ci.example:5050 (CI_REGISTRY) are pulled without it",
				"images of ci.example:5050, harbor.example are pulled as the existing files in /etc/docker/certs.d say"),
		},
		{
			name: "nowhere to write", there: map[string]string{"/etc/docker/certs.d": "a file"}, wantArgs: asked, wantFiles: map[string]string{buildxFile: ""},
			wantLog: []string{
				"warning: /etc/docker/certs.d/_default/hosts.toml cannot be written, so the mirror is not asked for all registries",
				"dockerd asks http://mirror:5000 first for images of Docker Hub", buildersAsk,
			},
		},
		{
			name: "before 28", version: "20.10.24", env: []string{"CI_REGISTRY=ci.example"}, there: user, wantArgs: []string{hubFlag, plainFlag},
			wantFiles: map[string]string{buildxFile: ""}, wantLog: []string{oldHub, buildersAsk},
		},
	})
}

// dockerd before 29.1 does not know the capability referrers, so it must be absent there.
func TestHostsWithoutReferrers(t *testing.T) {
	t.Parallel()
	for v, want := range map[string]bool{"28.0.0": false, "28.5.2": false, "29.0.4": false, "29.1.0": true, "30.0.0": true, "library-import": true} {
		in := scene{version: v}.input(t)
		plan, err := NewPlan(in)
		if err != nil {
			t.Fatal(err)
		}
		if f := plan.Files[0]; f.Path != defaultFile || strings.Contains(string(f.Content), "referrers") != want {
			t.Errorf("%s: %s:\n%s", v, f.Path, f.Content)
		}
	}
}

func TestDirect(t *testing.T) {
	t.Parallel()
	const gitlab = "images of gitlab.example:5050 (CI_REGISTRY), gitlab.example:443 (CI_DEPENDENCY_PROXY_SERVER), gitlab.example (CI_DEPENDENCY_PROXY_SERVER) are pulled without it"
	checkAll(t, []scene{
		{
			name: "GitLab", env: []string{"CI_REGISTRY=gitlab.example:5050", "CI_DEPENDENCY_PROXY_SERVER=gitlab.example:443"},
			wantArgs: []string{hubFlag}, wantLog: usual(gitlab),
			wantFiles: map[string]string{
				defaultFile: "", itselfFile: "", buildxFile: "",
				certs + "gitlab.example_5050_/hosts.toml": "# CI_REGISTRY: gitlab.example:5050 is asked directly, without a mirror.\n",
				certs + "gitlab.example_443_/hosts.toml":  "",
				certs + "gitlab.example/hosts.toml":       "",
			},
		},
		{
			name: "list", env: []string{"CACHALOT_DIRECT= a.example:1,b.example\n quay.io, a.example:1"},
			wantArgs: []string{hubFlag}, wantLog: usual("images of a.example:1 (CACHALOT_DIRECT), b.example (CACHALOT_DIRECT), quay.io (CACHALOT_DIRECT) are pulled without it"),
			wantFiles: map[string]string{
				defaultFile: "", itselfFile: "", certs + "a.example_1_/hosts.toml": "", certs + "b.example/hosts.toml": "", certs + "quay.io/hosts.toml": "",
				buildxFile: "[registry.\"docker.io\"]\n  mirrors = [\"mirror:5000/docker.io\"]\n[registry.\"mirror:5000\"]\n",
			},
		},
		{
			name: "the mirror", env: []string{"CACHALOT_DIRECT=mirror:5000", "CI_REGISTRY=mirror:5000"}, wantArgs: []string{hubFlag}, wantLog: usual(),
			wantFiles: map[string]string{defaultFile: "", itselfFile: "server = ", buildxFile: ""},
		},
		{
			name: "CI_REGISTRY is Docker Hub", env: []string{"CI_REGISTRY=https://index.docker.io/v1/"}, wantArgs: []string{hubFlag}, wantLog: usual(),
			wantFiles: map[string]string{defaultFile: "", itselfFile: "", buildxFile: ""},
		},
		{
			name: "CI_REGISTRY with a path", env: []string{"CI_REGISTRY=Registry.example/group"}, wantArgs: []string{hubFlag},
			wantLog: usual("images of registry.example (CI_REGISTRY) are pulled without it"),
		},
		{
			name: "CI_REGISTRY is odd", env: []string{"CI_REGISTRY=$REGISTRY"}, wantArgs: []string{hubFlag},
			wantLog: usual(`warning: CI_REGISTRY is not used: "$registry" is not the name of a registry; write one such as quay.io`),
		},
		{
			name: "insecure arguments", args: []string{"--insecure-registry", "plain.example:5000", "--insecure-registry=http://other.example", "--insecure-registry=127.0.0.0/8"},
			wantArgs: []string{"--insecure-registry", "plain.example:5000", "--insecure-registry=http://other.example", "--insecure-registry=127.0.0.0/8", hubFlag},
			wantLog:  usual("images of plain.example:5000 (--insecure-registry), other.example (--insecure-registry) are pulled without it"),
			wantFiles: map[string]string{
				defaultFile: "", itselfFile: "", buildxFile: "", certs + "plain.example_5000_/hosts.toml": "", certs + "other.example/hosts.toml": "",
			},
		},
		{
			name: "insecure in daemon.json", there: map[string]string{"/etc/docker/daemon.json": `{"insecure-registries": ["plain.example", "10.0.0.0/8"]}`},
			wantArgs: []string{hubFlag},
			wantLog: append([]string{"warning: behind the mirror, dockerd asks registries in 10.0.0.0/8 by https alone; name those of insecure-registries that have none in CACHALOT_DIRECT"},
				usual("images of plain.example (insecure-registries) are pulled without it")...),
			wantFiles: map[string]string{defaultFile: "", itselfFile: "", buildxFile: "", certs + "plain.example/hosts.toml": ""},
		},
	})
}

func TestHostFolders(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"quay.io": "quay.io", "a:5000": "a_5000_ a:5000", "[fd00::1]": "[fd00::1]", "[fd00::1]:5000": "[fd00::1]_5000_ [fd00::1]:5000",
	} {
		if got := strings.Join(hostFolders(name), " "); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}
