package bounds

// maxText is as much of another's words as is repeated.
const maxText = 100

// Text is what may be repeated, in an error or a line of the log, of words that a client
// or a registry has chosen.
func Text(s string) string { return TextTo(s, maxText) }

// TextTo is Text with a bound of its own, in bytes.
func TextTo(s string, most int) string {
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
