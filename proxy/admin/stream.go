package admin

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/task"
)

// tickEvery is how often a stream sends its progress.
const tickEvery = time.Second

// stream is a response of JSON lines (application/x-ndjson). It lasts as long as the work, and
// ends with an "end" line. A client that disconnects ends the work.
type stream struct {
	mu  sync.Mutex // guards the fields below; lines come from several goroutines
	w   http.ResponseWriter
	out *json.Encoder
}

// stream begins a response. It fails if maxStreams are running already.
func (c *call) stream() (s *stream, done func(), err error) {
	select {
	case c.streams <- struct{}{}:
	default:
		return nil, nil, problemf(http.StatusServiceUnavailable, "too_many", "%d such requests are running; try again later", maxStreams)
	}
	c.w.Header().Set("Content-Type", "application/x-ndjson")
	c.w.WriteHeader(http.StatusOK)
	return &stream{w: c.w, out: json.NewEncoder(c.w)}, func() { <-c.streams }, nil
}

// send writes a line. A client that has left ends the request's context.
func (s *stream) send(v any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	inTime(s.w)
	if s.out.Encode(v) == nil {
		_ = http.NewResponseController(s.w).Flush() // otherwise it is sent with the next line
	}
}

// during runs work and returns its error. Until then, it calls tick every tickEvery.
func during(ctx context.Context, work func() error, tick func()) error {
	done := make(chan error, 1)
	go func() { done <- task.Try("long request", work) }()
	every := time.NewTicker(tickEvery)
	defer every.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-every.C:
			if ctx.Err() == nil {
				tick()
			}
		}
	}
}

// VerifyRequest is the body of POST verify.
type VerifyRequest struct {
	DryRun bool `json:"dry_run,omitempty"`
}

// VerifyEvent is a line of the response of POST verify.
type VerifyEvent struct {
	Event string `json:"event"` // progress or end
	Bytes int64  `json:"bytes"` // read so far
	Total int64  `json:"total_bytes"`

	// Of end:
	Blobs   *int           `json:"blobs,omitempty"`
	Damaged []DamageAnswer `json:"damaged,omitempty"`
	DryRun  bool           `json:"dry_run,omitempty"`
	Error   string         `json:"error,omitempty"`
}

// DamageAnswer is a blob whose content does not match its digest.
type DamageAnswer struct {
	Digest     string `json:"digest"`
	Size       int64  `json:"size"`
	Reason     string `json:"reason"`
	Quarantine string `json:"quarantine,omitempty"`
}

// verifyNow checks every stored blob.
func (c *call) verifyNow() error {
	var wanted VerifyRequest
	if err := c.body(&wanted); err != nil {
		return err
	}
	c.audit.target = "all blobs"
	select {
	case c.verify <- struct{}{}:
		defer func() { <-c.verify }()
	default:
		return problemf(http.StatusConflict, "busy", "another verification is running; try again later")
	}
	out, done, err := c.stream()
	if err != nil {
		return err
	}
	defer done()
	var mu sync.Mutex // guards read and all
	var read, all int64
	now := func(event string) VerifyEvent {
		mu.Lock()
		defer mu.Unlock()
		return VerifyEvent{Event: event, Bytes: read, Total: all}
	}
	var found storage.Verification
	out.send(now("progress"))
	err = during(c.r.Context(), func() (err error) {
		found, err = c.p.Store().Verify(c.r.Context(), wanted.DryRun, func(n, total int64) {
			mu.Lock()
			defer mu.Unlock()
			read, all = read+n, total
		})
		return err
	}, func() { out.send(now("progress")) })
	end := now("end")
	end.Blobs, end.DryRun = &found.Blobs, wanted.DryRun
	for _, d := range found.Damaged {
		end.Damaged = append(end.Damaged, DamageAnswer{string(d.Digest), d.Size, d.Reason, d.Quarantine})
	}
	if err != nil {
		end.Error = err.Error()
	}
	out.send(end)
	c.audit.verified(found, err)
	return nil
}
