package config

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

const shippedConfig = "../../../config.yml"

func read(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// uncommented returns the text with its examples active: without the # of each line, and
// without the [] of the key above them.
func uncommented(text string) string {
	example := regexp.MustCompile(`^( *)#(-| ) `)
	lines := strings.Split(text, "\n")
	within := false
	for i, line := range lines {
		if !example.MatchString(line) {
			within = false
			continue
		}
		if !within {
			lines[i-1] = strings.Replace(lines[i-1], ": []", ":", 1)
		}
		within = true
		lines[i] = example.ReplaceAllString(line, "$1$2 ")
	}
	return strings.Join(lines, "\n")
}

// accept parses a text of examples. It sets their variables, and writes their files to a
// temporary folder.
func accept(t *testing.T, text string) Config {
	t.Helper()
	content := map[string]string{
		".json": `{"auths": {"https://index.docker.io/v1/": {"auth": "dXNlcjpwYXNzd29yZA=="}}}`,
		".pem":  read(t, upstreamtest.New(t, upstreamtest.Options{TLS: true}).CAFile),
		"":      "password\n",
	}
	dir := t.TempDir()
	text = regexp.MustCompile(`/(run/secrets|etc/cachalot)/[\w./-]+`).ReplaceAllStringFunc(text, func(path string) string {
		file := filepath.Join(dir, filepath.Base(path))
		if err := os.WriteFile(file, []byte(content[filepath.Ext(path)]), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	})
	c, err := Parse("f", []byte(text), func(string) (string, bool) { return "value", true })
	if err != nil {
		t.Errorf("%v in\n%s", err, text)
	}
	return c
}

func TestShippedConfigIsTheDefaults(t *testing.T) {
	t.Parallel()
	got, err := Load(shippedConfig, noVariables)
	if err != nil {
		t.Fatal(err)
	}
	if want := Defaults(); !reflect.DeepEqual(got, want) {
		t.Errorf("config.yml gives\n%+v\nand the defaults are\n%+v", got, want)
	}
}

func TestShippedExamples(t *testing.T) {
	t.Parallel()
	text := read(t, shippedConfig)
	c := accept(t, uncommented(text))
	accounts, rules := len(c.Upstreams["docker.io"].Accounts), len(c.Rules)
	if accounts == 0 || rules == 0 || accounts+rules != strings.Count(text, "#- ") {
		t.Errorf("%d accounts and %d rules are in force", accounts, rules)
	}
}

// The configurations in docs/upstreams.md are valid.
func TestUpstreamsPage(t *testing.T) {
	t.Parallel()
	blocks := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$").FindAllStringSubmatch(read(t, "../../../docs/upstreams.md"), -1)
	if len(blocks) < 5 {
		t.Fatalf("%d blocks of YAML", len(blocks))
	}
	for _, block := range blocks {
		accept(t, block[1])
	}
}

func TestShippedConfigHasEveryKey(t *testing.T) {
	t.Parallel()
	text := read(t, shippedConfig)
	file, err := parser.ParseBytes([]byte(uncommented(text)), 0)
	if err != nil {
		t.Fatal(err)
	}
	shown := map[string]bool{}
	var walk func(prefix string, node ast.Node)
	walk = func(prefix string, node ast.Node) {
		switch n := node.(type) {
		case *ast.MappingNode:
			for _, v := range n.Values {
				walk(join(prefix, v.Key.(*ast.StringNode).Value), v.Value)
			}
		case *ast.SequenceNode:
			for _, v := range n.Values {
				walk(prefix+"[N]", v)
			}
		}
		shown[strings.Replace(prefix, "upstreams.docker.io", "upstreams.NAME", 1)] = true
	}
	walk("", file.Docs[0].Body)
	for _, key := range keysOf(reflect.TypeFor[Config](), "") {
		// The comment above the list says that accounts have the same keys.
		if !shown[strings.Replace(key, ".accounts[N]", "", 1)] {
			t.Errorf("config.yml does not show %s", key)
		}
	}
	for n, line := range strings.Split(text, "\n") {
		if _, comment, _ := strings.Cut(line, " #"); strings.Contains(line, ": ") && !strings.HasPrefix(line, "#") && comment == "" {
			t.Errorf("config.yml:%d has no comment", n+1)
		}
	}
}
