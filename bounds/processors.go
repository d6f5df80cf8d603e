package bounds

import (
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/cachalot-registry/cachalot/task"
)

// Processors lends Go more processors (GOMAXPROCS) than the machine has, while large bodies
// are parsed.
//
// Go interrupts a goroutine that computes after 10 ms. A goroutine in a system call, such
// as fsync, keeps its processor for up to 10 ms. On a machine with two processors a body
// that is parsed and a blob that is made durable together stop all clients for that time.
// With more processors the kernel divides the machine's time instead, in smaller steps.
// They cost a hit a fifth more CPU time, so they are lent for a while only.
type Processors struct {
	more  func() bool // false: none can be lent
	usual func()

	mu      sync.Mutex // guards the fields below
	working int
	loan    *time.Timer // ends it; nil: there is none
}

const (
	// mostLent is how many are lent at most: of many, some are always free.
	mostLent = 8
	// loanTime is how long a loan outlasts the last work: each change stops all goroutines
	// for a moment.
	loanTime = time.Second
)

// NewProcessors lends none where the operator has set GOMAXPROCS, or the container's limit
// is below the machine's processors: more would only use up that limit sooner.
func NewProcessors() *Processors {
	if _, set := os.LookupEnv("GOMAXPROCS"); set {
		return nil
	}
	return &Processors{
		more: func() bool {
			n := runtime.NumCPU()
			if runtime.GOMAXPROCS(0) != n {
				return false
			}
			runtime.GOMAXPROCS(min(2*n, n+mostLent))
			return true
		},
		usual: runtime.SetDefaultGOMAXPROCS, // which Go goes on to update
	}
}

// Borrow lends processors to work that begins, until done is called. A nil Processors lends
// none.
func (p *Processors) Borrow() (done func()) {
	if p == nil {
		return func() {}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.working++
	if p.loan == nil && p.more() {
		p.loan = time.AfterFunc(loanTime, task.Guard("return of processors", p.end))
	}
	return p.done
}

func (p *Processors) done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.working--
	if p.working == 0 && p.loan != nil {
		p.loan.Reset(loanTime)
	}
}

// end gives them back, unless work goes on: its done sets the timer.
func (p *Processors) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.working == 0 && p.loan != nil {
		p.loan = nil
		p.usual()
	}
}
