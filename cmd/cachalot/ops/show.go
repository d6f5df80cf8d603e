package ops

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf16"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
)

// safe returns text that is safe for a terminal. It escapes characters that are not printable:
// they could move the cursor, or change the direction of writing.
func safe(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strings.ToValidUTF8(s, "\uFFFD")
	}
	var b strings.Builder
	for _, r := range s {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
		} else {
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
	}
	return b.String()
}

// safeJSON escapes the same characters in JSON, whose value stays the same.
func safeJSON(body []byte) []byte {
	b := make([]byte, 0, len(body))
	for _, r := range string(body) {
		switch {
		case r == '\n' || unicode.IsPrint(r):
			b = append(b, string(r)...)
		case r > 0xFFFF:
			high, low := utf16.EncodeRune(r)
			b = fmt.Appendf(b, `\u%04x\u%04x`, high, low)
		default:
			b = fmt.Appendf(b, `\u%04x`, r)
		}
	}
	return b
}

// showJSON writes a response; only its white space changes.
func showJSON(w io.Writer, body []byte) error {
	var b bytes.Buffer
	if err := json.Indent(&b, bytes.TrimSpace(body), "", "  "); err != nil {
		return err
	}
	_, err := w.Write(append(safeJSON(b.Bytes()), '\n'))
	return err
}

// format is the value of --output.
type format string

func (f *format) String() string { return string(*f) }
func (*format) Type() string     { return "FORMAT" }

func (f *format) Set(text string) error {
	if text != "table" && text != "json" {
		return fmt.Errorf("%q is not known; write table or json", text)
	}
	*f = format(text)
	return nil
}

func (f *format) json() bool { return *f == "json" }

func (f *format) flag(cmd *cobra.Command) {
	*f = "table"
	cmd.Flags().VarP(f, "output", "o", "`FORMAT`: table, or json as the admin API answers")
	complete(cmd, "output", "table", "json")
}

// table aligns columns.
type table struct{ w *tabwriter.Writer }

func newTable(w io.Writer, columns ...string) *table {
	t := &table{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	if len(columns) > 0 {
		t.line(columns)
	}
	return t
}

func (t *table) line(cells []string) {
	for len(cells) > 0 && cells[len(cells)-1] == "" {
		cells = cells[:len(cells)-1] // no spaces at the end
	}
	_, _ = io.WriteString(t.w, strings.Join(cells, "\t")+"\n") // Flush returns the error
}

func (t *table) row(cells ...any) {
	texts := make([]string, len(cells))
	for i, c := range cells {
		texts[i] = safe(fmt.Sprint(c))
	}
	t.line(texts)
}

func (t *table) end() error { return t.w.Flush() }

func size(n int64) string {
	if n < 0 {
		return "-" + humanize.IBytes(uint64(-n))
	}
	return humanize.IBytes(uint64(n))
}

func percent(part, whole int64) string {
	if whole <= 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f %%", 100*float64(part)/float64(whole))
}

func when(t, now time.Time) string {
	if t.IsZero() || t.Unix() <= 0 {
		return "-"
	}
	return humanize.RelTime(t, now, "ago", "from now")
}

func yes(is bool) string {
	if is {
		return "yes"
	}
	return "no"
}

// things returns "1 blob", or "1,200 blobs".
func things[N int | int64](n N, one string) string {
	if n == 1 {
		return "1 " + one
	}
	plural := one + "s"
	if stem, ok := strings.CutSuffix(one, "y"); ok {
		plural = stem + "ies"
	}
	return humanize.Comma(int64(n)) + " " + plural
}

// short returns the beginning of a digest, for people.
func short[T ~string](d T) string {
	algorithm, hex, ok := strings.Cut(string(d), ":")
	if !ok || len(hex) <= 12 {
		return string(d)
	}
	return algorithm + ":" + hex[:12]
}

func isDigest(name string) bool {
	return strings.HasPrefix(name, "sha256:") || strings.HasPrefix(name, "sha512:")
}

// say writes a line to standard output.
func say(cmd *cobra.Command, message string, args ...any) error {
	_, err := fmt.Fprintln(cmd.OutOrStdout(), safe(fmt.Sprintf(message, args...)))
	return err
}
