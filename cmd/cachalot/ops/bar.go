package ops

import (
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// Bar shows how far long work is, where it is written to a terminal, and nothing
// elsewhere. It is for one goroutine at a time.
type Bar struct {
	to     io.Writer // nil: it is not shown
	uneven bool      // no rate is shown: some of it is done without work
	what   string
	bar    *progressbar.ProgressBar
}

// NewBar is for work of which nothing has been done yet.
func NewBar(stderr io.Writer) *Bar {
	if f, ok := stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return &Bar{to: stderr}
	}
	return &Bar{}
}

// At shows how many bytes are done, of how many are known of by now.
func (b *Bar) At(done, all int64, what string) {
	if b.to == nil || all <= 0 {
		return
	}
	if b.bar == nil {
		b.what = what
		b.bar = progressbar.NewOptions64(all, progressbar.OptionSetWriter(b.to), progressbar.OptionSetDescription(what),
			progressbar.OptionShowBytes(!b.uneven), progressbar.OptionSetPredictTime(!b.uneven), progressbar.OptionUseIECUnits(true),
			progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish())
	}
	if all != b.bar.GetMax64() {
		b.bar.ChangeMax64(all)
	}
	_ = b.bar.Set64(min(done, all-1)) // it is only shown; there it would end, and more may come
	if what != b.what {
		b.what = what
		b.bar.Describe(what) // draws it again
	}
}

// Clear makes room for a line; the bar comes again with the next At.
func (b *Bar) Clear() {
	if b.bar != nil {
		_ = b.bar.Clear() // it is only shown
	}
}

// Done takes it away.
func (b *Bar) Done() {
	if b.bar != nil {
		_ = b.bar.Finish() // it is only shown
	}
}
