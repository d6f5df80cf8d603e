package bounds

// maxText is the length, in bytes, up to which text of a client or registry is repeated.
const maxText = 100

// Text returns as much of a text from a client or a registry as an error or a log line may
// repeat.
func Text(s string) string { return TextTo(s, maxText) }

// TextTo is Text with the bound most, in bytes.
func TextTo(s string, most int) string {
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
