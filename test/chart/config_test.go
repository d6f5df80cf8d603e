package chart

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	core "k8s.io/api/core/v1"
	sigsyaml "sigs.k8s.io/yaml"
)

// settings returns the rendered configuration by "section.key".
func settings(t *testing.T, r rendered) map[string]any {
	t.Helper()
	parsed := map[string]any{}
	if err := sigsyaml.UnmarshalStrict([]byte(config(t, r)), &parsed); err != nil {
		t.Fatal(err)
	}
	flat := map[string]any{}
	for section, v := range parsed {
		if keys, ok := v.(map[string]any); ok {
			for k, v := range keys {
				flat[section+"."+k] = v
			}
			continue
		}
		flat[section] = v
	}
	return flat
}

// TestConfig: the values are used, and the chart's defaults for the rest.
func TestConfig(t *testing.T) {
	own := map[string]any{"listen": ":5000", "admin.listen": ":5001", "storage.path": "/var/lib/cachalot", "storage.max_size": "55296MiB", "max_connections": 997.0, "log.format": "json", "drain_delay": "5s"}
	for values, different := range map[string]map[string]any{
		`{}`:                                            {},
		`{config: {storage: {max_size: 0}}}`:            {"storage.max_size": 0.0},
		`{config: {storage: {path: /srv}}}`:             {"storage.path": "/srv"},
		`{config: {log: {format: text}}}`:               {"log.format": "text"},
		`{config: {log: {level: debug}}}`:               {"log.level": "debug"},
		`{config: {admin: {listen: "127.0.0.1:5001"}}}`: {"admin.listen": "127.0.0.1:5001"},
		`{config: {tags: {fresh_for: 0s}, send_timeout: 0s, upstreams: {docker.io: {race_after: 0s}}}}`: {
			"tags.fresh_for": "0s", "send_timeout": "0s", "upstreams.docker.io": map[string]any{"race_after": "0s"},
		},
		`{persistence: {size: 1.5Ti}}`:                          {"storage.max_size": "1415577MiB"},
		`{config: {upstreams: {docker.io: {}, ghcr.io: null}}}`: {"upstreams.docker.io": map[string]any{}, "upstreams.ghcr.io": any(nil)},
		`{persistence: {size: 100G}}`:                           {"storage.max_size": "85830MiB"},
		`{persistence: {type: emptyDir, size: 10Gi}}`:           {"storage.max_size": "9216MiB", "storage.min_free": "20%"},
		`{persistence: {type: hostPath, hostPath: /srv/cache}}`: {"storage.min_free": "20%"},
		`{tls: {secretName: web}}`:                              {"tls.certificate": "/run/secrets/tls/tls.crt", "tls.key": "/run/secrets/tls/tls.key"},
	} {
		want := maps.Clone(own)
		maps.Copy(want, different)
		if strings.Contains(values, "hostPath") { // its size is unknown
			delete(want, "storage.max_size")
		}
		if got := settings(t, render(t, "mirror", values)); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s:\n got %v\nwant %v", values, got, want)
		}
	}
}

func checksum(t *testing.T, config map[string]any) string {
	t.Helper()
	values, err := sigsyaml.Marshal(map[string]any{"config": config})
	if err != nil {
		t.Fatal(err)
	}
	sum := statefulSet(t, render(t, "mirror", string(values))).Spec.Template.Annotations["checksum/config"]
	if len(sum) != 64 {
		t.Fatalf("checksum %q", sum)
	}
	return sum
}

// TestRestarts: a change of a key replaces the pods only if cachalot needs a restart for it.
func TestRestarts(t *testing.T) {
	source, err := os.ReadFile("../../cmd/cachalot/server/reload.go")
	if err != nil {
		t.Fatal(err)
	}
	restart := map[string]bool{}
	for _, found := range regexp.MustCompile(`append\(changed, "([^"]+)"\)`).FindAllStringSubmatch(string(source), -1) {
		for key := range strings.SplitSeq(found[1], ", ") {
			restart[key] = true
		}
	}
	if len(restart) < 10 {
		t.Fatalf("few keys in reload.go: %v", slices.Sorted(maps.Keys(restart)))
	}
	shipped, err := os.ReadFile("../../config.yml")
	if err != nil {
		t.Fatal(err)
	}
	var sections map[string]any
	if err := sigsyaml.Unmarshal(shipped, &sections); err != nil {
		t.Fatal(err)
	}
	before := checksum(t, map[string]any{})
	for section, v := range sections {
		keys, ok := v.(map[string]any)
		if !ok || section == "upstreams" {
			keys = map[string]any{"": nil}
		}
		for key := range keys {
			name, change := section, map[string]any{section: "${CHANGED}"}
			switch {
			case key != "":
				name, change = section+"."+key, map[string]any{section: map[string]any{key: "/${CHANGED}:1"}}
			case section == "trusted_proxies", section == "hosts":
				change = map[string]any{section: []any{"${CHANGED}"}}
			case section == "rules":
				change = map[string]any{section: []any{map[string]any{"match": []any{"${CHANGED}"}}}}
			case section == "upstreams":
				change = map[string]any{section: map[string]any{"docker.io": map[string]any{"username": "changed"}}}
			case section == "listen":
				change = map[string]any{section: ":5555"}
			}
			switch name {
			case "admin.token": // the value must be a variable
				change = map[string]any{section: map[string]any{key: "${CHANGED}"}}
			case "admin.hosts":
				change = map[string]any{section: map[string]any{key: []any{"${CHANGED}"}}}
			}
			wanted := restart[name] || restart[section]
			if got := checksum(t, change) != before; got != wanted {
				t.Errorf("a change of %s replaces the pods: %v; cachalot wants a restart: %v", name, got, wanted)
			}
			delete(restart, name)
		}
		delete(restart, section)
	}
	if len(restart) > 0 {
		t.Errorf("not in config.yml: %v", restart)
	}
}

// TestConfigReloads: the mirror watches the file, in a mount that Kubernetes updates.
func TestConfigReloads(t *testing.T) {
	c := statefulSet(t, render(t, "mirror", "")).Spec.Template.Spec.Containers[0]
	if !slices.Equal(c.Args, []string{"serve", "--config", "/etc/cachalot/cachalot.yml", "--watch"}) {
		t.Errorf("arguments %q", c.Args)
	}
	i := slices.IndexFunc(c.VolumeMounts, func(m core.VolumeMount) bool { return m.MountPath == "/etc/cachalot" })
	if i < 0 || c.VolumeMounts[i].SubPath != "" {
		t.Errorf("mounts %v", c.VolumeMounts)
	}
}

// TestValues_Refused: values that cannot work or that expose a secret give an error with the fix.
func TestValues_Refused(t *testing.T) {
	for values, want := range map[string]string{
		`{replicas: 2, persistence: {type: existingClaim, existingClaim: images}}`:     "set replicas to 1, or persistence.type to claim",
		`{replicaCount: 2, persistence: {type: existingClaim, existingClaim: images}}`: "set replicas to 1, or persistence.type to claim",
		`{replicas: 3, replicaCount: 2}`:                                               "replicas is 3 and replicaCount 2",
		`{podDisruptionBudget: {minAvailable: 1, maxUnavailable: 34%}}`:                "podDisruptionBudget.minAvailable is 1 and maxUnavailable 34%",
		`{podDisruptionBudget: {minAvailable: 0, maxUnavailable: 0}}`:                  "podDisruptionBudget.minAvailable is 0 and maxUnavailable 0",
		`{enabled: false}`: "name this value as the condition of the dependency",
		`{config: {admin: {listen: "127.0.0.1:5001"}}, metrics: {podMonitor: {enabled: true}}}`: "set it to :5001",
		`{metrics: {podMonitor: {enabled: true}, serviceMonitor: {enabled: true}}}`:             "enable one of them",
		`{config: {upstreams: {docker.io: {username: ci, password: correct horse}}}}`:           "config.upstreams.docker.io has a password",
		`{config: {upstreams: {docker.io: {accounts: [{username: ci, password: "a${B}"}]}}}}`:   "config.upstreams.docker.io has a password",
		`{config: {admin: {token: correct horse battery}}}`:                                     "token_file",
		`{metrics: {prometheusRule: {enabled: true}}}`:                                          "enable metrics.serviceMonitor or metrics.podMonitor, or set metrics.prometheusRule.selector",
		`{config: {storage: {path: ""}}}`:                                                       "config.storage.path must be a full path",
		`{service: {nodePort: 30500}}`:                                                          "service.type NodePort or LoadBalancer",
		`{service: {externalTrafficPolicy: Local}}`:                                             "service.type NodePort or LoadBalancer",
	} {
		_, err := tryRender(t, loadChart(t), "mirror", values)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", values, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "correct horse") {
			t.Errorf("%s: the error repeats the secret: %v", values, err)
		}
	}
}

// TestConfigSchema: the schema of "config" is cachalot's own, so that a wrong key fails
// before any change. CACHALOT_WRITE_SCHEMA=1 writes it.
func TestConfigSchema(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), cachalot(t), "config", "schema").Output()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "values.schema.json")
	shipped, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	const begin, end = `    "config": `, ",\n    \"secrets\": {\n"
	before, rest, found := strings.Cut(string(shipped), begin)
	is, after, ended := strings.Cut(rest, end)
	if !found || !ended {
		t.Fatal("no config before secrets in values.schema.json")
	}
	want := strings.ReplaceAll(strings.TrimSpace(string(out)), "\n", "\n    ")
	if os.Getenv("CACHALOT_WRITE_SCHEMA") != "" {
		if err := os.WriteFile(file, []byte(before+begin+want+end+after), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	if is != want {
		t.Error("config in values.schema.json is not what cachalot says; write it with: CACHALOT_WRITE_SCHEMA=1 go test -count=1 -run '^TestConfigSchema$' .")
	}
}
