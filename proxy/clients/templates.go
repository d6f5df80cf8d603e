package clients

import (
	"bytes"
	"embed"
	"encoding/base64"
	"encoding/json"
	"strings"
	"text/template"
)

// templates are the parts of clients' configurations.
type templates struct{ *template.Template }

//go:embed templates/*.tmpl
var templateFiles embed.FS

func newTemplates() templates {
	t := templates{template.New("")}
	t.Funcs(template.FuncMap{
		"quote":   quote,
		"shell":   shellQuote,
		"base64":  base64.StdEncoding.EncodeToString,
		"indent":  indent,
		"include": t.render,
	})
	template.Must(t.ParseFS(templateFiles, "templates/*.tmpl"))
	return t
}

func (t templates) file(name string, v view, path, use string) File {
	content, err := t.render(name, v)
	if err != nil {
		panic(err) // a bug in a template; the tests render all of them
	}
	return File{Path: path, Use: use, Content: content}
}

func (t templates) render(name string, v view) (string, error) {
	var b strings.Builder
	err := t.ExecuteTemplate(&b, name, v)
	return b.String(), err
}

// quote returns a string as JSON. TOML's basic strings and YAML's double-quoted ones are the
// same for the characters that a view can have.
func quote(s string) (string, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(s)
	return strings.TrimSuffix(b.String(), "\n"), err
}

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// indent indents text for a YAML block.
func indent(n int, s string) string {
	margin := strings.Repeat(" ", n)
	lines := strings.Split(strings.TrimSuffix(s, "\n"), "\n")
	for i, line := range lines {
		if line != "" {
			lines[i] = margin + line
		}
	}
	return strings.Join(lines, "\n")
}
