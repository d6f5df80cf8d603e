package chart

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/action"
)

// helmDocs makes README.md from the comments in values.yaml.
const helmDocs = "github.com/norwoodj/helm-docs/cmd/helm-docs@v1.14.2"

// TestLint runs "helm lint --strict" with typical values.
func TestLint(t *testing.T) {
	for name, c := range choices() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lint := action.NewLint()
			lint.Strict, lint.Namespace = true, namespace
			for _, err := range lint.Run([]string{dir}, parse(t, c.values)).Errors {
				t.Error(err)
			}
		})
	}
}

// TestReadme: the table matches the comments in values.yaml. CACHALOT_WRITE_README=1 writes it.
func TestReadme(t *testing.T) {
	args := []string{"run", helmDocs, "--chart-search-root", dir, "--sort-values-order", "file", "--skip-version-footer"}
	if os.Getenv("CACHALOT_WRITE_README") == "" {
		args = append(args, "--dry-run")
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(context.Background(), "go", args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil || strings.Contains(stderr.String(), "level=error") || strings.Contains(stderr.String(), "level=warning") {
		t.Fatalf("helm-docs: %v\n%s", err, stderr.String())
	}
	shipped, err := os.ReadFile(filepath.Join(dir, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(shipped)) {
		if strings.Contains(line, "|  |") {
			t.Errorf("no comment that begins with # --: %s", line)
		}
	}
	if !slices.Contains(args, "--dry-run") {
		return
	}
	if strings.TrimSpace(stdout.String()) != strings.TrimSpace(string(shipped)) {
		t.Error("README.md is not that of values.yaml; write it with: CACHALOT_WRITE_README=1 go test -count=1 -run '^TestReadme$' .")
	}
}

// TestSchema: an error names a mistake. Only maps that are Kubernetes' own accept unknown keys.
func TestSchema(t *testing.T) {
	for values, want := range map[string]string{
		`{replica: 2}`:                                        "'replica'",
		`{enabled: maybe}`:                                    "/enabled",
		`{replicaCount: "2"}`:                                 "/replicaCount",
		`{global: {imageRegistry: [a]}}`:                      "/global/imageRegistry",
		`{global: {imagePullSecrets: [{secret: a}]}}`:         "/global/imagePullSecrets/0",
		`{namespaceOverride: Mirrors}`:                        "/namespaceOverride",
		`{commonAnnotations: {a: 1}}`:                         "/commonAnnotations/a",
		`{minReadySeconds: -1}`:                               "/minReadySeconds",
		`{configCheck: {enable: true}}`:                       "'enable'",
		`{service: {internalTrafficPolicy: local}}`:           "/service/internalTrafficPolicy",
		`{service: {trafficDistribution: Near}}`:              "/service/trafficDistribution",
		`{podDisruptionBudget: {minAvailable: half}}`:         "/podDisruptionBudget/minAvailable",
		`{extraObjects: [{kind: ConfigMap}]}`:                 "/extraObjects/0",
		`{image: {repo: x}}`:                                  "'repo'",
		`{image: {tag: latest}}`:                              "/image/tag",
		`{persistence: {enabled: false}}`:                     "'enabled'",
		`{persistence: {type: pvc}}`:                          "/persistence/type",
		`{persistence: {size: 60GiB}}`:                        "/persistence/size",
		`{persistence: {type: existingClaim}}`:                "/persistence/existingClaim",
		`{persistence: {type: hostPath, hostPath: srv}}`:      "/persistence/hostPath",
		`{secrets: {hub: {}}}`:                                "/secrets/hub",
		`{secrets: {hub: {existingSecret: a, data: {b: c}}}}`: "/secrets/hub",
		`{secrets: {Hub: {existingSecret: a}}}`:               "'Hub'",
		`{secrets: {tls: {existingSecret: a}}}`:               "'tls'",
		`{service: {type: ExternalName}}`:                     "/service/type",
		`{service: {port: "5000"}}`:                           "/service/port",
		`{service: {ipFamilies: [IPv5]}}`:                     "/service/ipFamilies/0",
		`{ingress: {enabled: true}}`:                          "/ingress/hosts",
		`{httpRoute: {enabled: true}}`:                        "/httpRoute/parentRefs",
		`{tls: {certManager: {enabled: true}}}`:               "/tls/certManager/issuerRef",
		`{livenessProbe: {httpGet: {path: /}}}`:               "'httpGet'",
		`{metrics: {serviceMonitor: {scrape: 1}}}`:            "'scrape'",
		`{podLabels: {a: 1}}`:                                 "/podLabels/a",
		`{config: {tags: {fresh_fro: 1m}}}`:                   "'fresh_fro'",
		`{config: {tags: {fresh_for: 1 minute}}}`:             "/config/tags/fresh_for",
		`{config: {storage: {max_size: much}}}`:               "/config/storage/max_size",
		`{config: {upstreams: {docker.io: {user: ci}}}}`:      "'user'",
	} {
		_, err := tryRender(t, loadChart(t), "mirror", values)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", values, err, want)
		}
	}
	data, err := os.ReadFile(filepath.Join(dir, "values.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	var schema map[string]any
	if err := json.Unmarshal(data, &schema); err != nil {
		t.Fatal(err)
	}
	free := []string{
		"config", "global", "resources", "podSecurityContext", "securityContext", "affinity", "dnsConfig", "persistence.selector",
		"lifecycle", "updateStrategy", "configCheck.resources", "nodes.updateStrategy", "nodes.resources", "nodes.podSecurityContext", "nodes.securityContext", "nodes.affinity",
	}
	checkObject(t, "", schema, loadChart(t).Values, free)
}

// checkObject checks that the values and the schema have the same keys, and that the schema
// allows no others.
func checkObject(t *testing.T, path string, schema, values map[string]any, free []string) {
	t.Helper()
	name := strings.TrimPrefix(path, ".")
	properties, _ := schema["properties"].(map[string]any)
	if properties == nil {
		if schema["additionalProperties"] == nil && !slices.Contains(free, name) {
			t.Errorf("%s takes anything", name)
		}
		return
	}
	if schema["additionalProperties"] != false && !slices.Contains(free, name) {
		t.Errorf("%s takes unknown keys", name)
	}
	for key, v := range values {
		property, ok := properties[key].(map[string]any)
		if !ok {
			t.Errorf("%s.%s is not in the schema", name, key)
			continue
		}
		if nested, ok := v.(map[string]any); ok {
			checkObject(t, path+"."+key, property, nested, free)
		}
	}
	if slices.Contains([]string{"tls.certManager.issuerRef", "httpRoute.timeouts", "startupProbe", "livenessProbe", "readinessProbe", "config"}, name) {
		return // parts of Kubernetes objects, and cachalot's configuration
	}
	for key := range properties {
		if _, ok := values[key]; !ok {
			t.Errorf("%s.%s is in the schema and not in values.yaml", name, key)
		}
	}
}
