package ops

import (
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// Bar shows the progress of long work on a terminal. If the output is not a terminal, it shows
// nothing. It is for one goroutine at a time.
type Bar struct {
	to     io.Writer // nil: it is not shown
	uneven bool      // no rate is shown: some of the progress needs no work
	what   string
	bar    *progressbar.ProgressBar
}

// NewBar returns a bar for work that has not begun.
func NewBar(stderr io.Writer) *Bar {
	if f, ok := stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return &Bar{to: stderr}
	}
	return &Bar{}
}

// At shows how many bytes are done, of all that are known so far.
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
	_ = b.bar.Set64(min(done, all-1)) // display only; at all the bar would end, and all may still grow
	if what != b.what {
		b.what = what
		b.bar.Describe(what) // draws it again
	}
}

// Clear removes the bar, so that a line can be printed; the next At shows it again.
func (b *Bar) Clear() {
	if b.bar != nil {
		_ = b.bar.Clear() // display only
	}
}

// Done removes the bar.
func (b *Bar) Done() {
	if b.bar != nil {
		_ = b.bar.Finish() // display only
	}
}
