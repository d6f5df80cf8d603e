package dind

import "testing"

func TestNoProxy(t *testing.T) {
	t.Parallel()
	const (
		json = "/etc/docker/daemon.json"
		set  = "HTTP_PROXY=http://proxy:3128"
		line = "mirror is added to NO_PROXY: the mirror is asked without the proxy"
	)
	both := map[string]string{"NO_PROXY": "mirror", "no_proxy": "mirror"}
	asked := []string{hubFlag}
	checkAll(t, []scene{
		{name: "proxy", env: []string{set}, wantArgs: asked, wantEnv: both, wantLog: usual(line)},
		{name: "lower case", env: []string{"http_proxy=proxy:3128"}, wantArgs: asked, wantEnv: both, wantLog: usual(line)},
		{name: "for https alone", env: []string{"HTTPS_PROXY=http://proxy:3128"}, wantArgs: asked, wantLog: usual()},
		{
			name: "both lists", env: []string{set, "NO_PROXY=a,b", "no_proxy=c"}, wantArgs: asked,
			wantEnv: map[string]string{"NO_PROXY": "a,b,mirror", "no_proxy": "c,mirror"}, wantLog: usual(line),
		},
		{
			name: "one list", env: []string{set, "no_proxy=c"}, wantArgs: asked,
			wantEnv: map[string]string{"NO_PROXY": "c,mirror", "no_proxy": "c,mirror"}, wantLog: usual(line),
		},
		{name: "one list covers", env: []string{set, "no_proxy=c,mirror:5000"}, wantArgs: asked, wantLog: usual()},
		{name: "one of two covers", env: []string{set, "NO_PROXY=*", "no_proxy=c"}, wantArgs: asked, wantEnv: map[string]string{"no_proxy": "c,mirror"}, wantLog: usual(line)},
		{name: "all", env: []string{set, "NO_PROXY=*"}, wantArgs: asked, wantLog: usual()},
		{name: "port of another", env: []string{set, "NO_PROXY=mirror:80"}, wantArgs: asked, wantEnv: map[string]string{"NO_PROXY": "mirror:80,mirror", "no_proxy": "mirror:80,mirror"}, wantLog: usual(line)},
		{
			name: "network", env: []string{"CACHALOT_MIRROR=http://10.1.2.3:5000", set, "NO_PROXY=10.0.0.0/8"}, args: []string{"sh"}, wantArgs: []string{"sh"},
			wantLog: []string{"new builders of docker buildx ask http://10.1.2.3:5000 first for images of well-known registries: " + buildxFile},
		},
		{name: "arguments", args: []string{"--http-proxy=http://proxy"}, wantArgs: []string{"--http-proxy=http://proxy", hubFlag}, wantEnv: both, wantLog: usual(line)},
		{name: "daemon.json", there: map[string]string{json: `{"proxies": {"http-proxy": "http://proxy"}}`}, wantArgs: asked, wantEnv: both, wantLog: usual(line)},
		{
			name: "arguments for all", args: []string{"--http-proxy=http://proxy", "--no-proxy", "a"}, wantArgs: []string{"--http-proxy=http://proxy", "--no-proxy", "a", hubFlag},
			wantLog: usual("warning: http://mirror:5000 is asked through the proxy: --no-proxy does not have mirror; add it there"),
		},
		{
			name: "daemon.json for all", env: []string{set}, there: map[string]string{json: `{"proxies": {"no-proxy": "a"}}`}, wantArgs: asked,
			wantLog: usual("warning: http://mirror:5000 is asked through the proxy: no-proxy in /etc/docker/daemon.json does not have mirror; add it there"),
		},
		{name: "daemon.json covers", env: []string{set}, there: map[string]string{json: `{"proxies": {"no-proxy": "mirror"}}`}, wantArgs: asked, wantLog: usual()},
		{name: "a command", env: []string{set}, args: []string{"sh"}, wantArgs: []string{"sh"}, wantLog: []string{buildersAsk}},
	})
}

// The added entry covers the mirror, for every form of its address.
func TestNoProxyOfAddresses(t *testing.T) {
	t.Parallel()
	for _, mirror := range []string{"http://10.1.2.3:5000", "http://10.1.2.3", "http://[fd00::1]:5000", "http://[fd00::1]", "http://a.b.example"} {
		s := scene{env: []string{"CACHALOT_MIRROR=" + mirror, "http_proxy=http://proxy"}}
		in := s.input(t)
		for round := range 2 {
			plan, err := NewPlan(in)
			if err != nil {
				t.Fatal(err)
			}
			if changed := len(changes(in.Env, plan.Env)) > 0; changed != (round == 0) {
				t.Errorf("%s: round %d: %q", mirror, round, plan.Env)
			}
			in.Env = plan.Env
		}
	}
	// Clients never use a proxy for a loopback address.
	in := scene{env: []string{"CACHALOT_MIRROR=http://127.0.0.1:5000", "http_proxy=http://proxy"}}.input(t)
	plan, err := NewPlan(in)
	if err != nil || len(changes(in.Env, plan.Env)) > 0 {
		t.Errorf("%v, %q", err, plan.Env)
	}
}
