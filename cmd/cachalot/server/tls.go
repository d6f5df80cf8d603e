package server

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/cachalot-registry/cachalot/cmd/cachalot/config"
)

// certificate is the listener's, from its files. A renewal needs no reload: the files are
// checked now and then.
type certificate struct {
	cfg config.TLS
	log *slog.Logger

	mu     sync.Mutex // guards the fields below
	pair   *tls.Certificate
	files  [2]fileState // the state of the files that pair was read from
	looked time.Time
}

// fileState shows whether a file has changed.
type fileState struct {
	changed time.Time
	size    int64
}

// lookAgain is how long a handshake does not check the files again.
const lookAgain = 10 * time.Second

// newCertificate reads the files.
func newCertificate(cfg config.TLS, log *slog.Logger) (*certificate, error) {
	c := &certificate{cfg: cfg, log: log}
	files, err := c.state()
	if err != nil {
		return nil, err
	}
	if err := c.load(files); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *certificate) state() (files [2]fileState, err error) {
	for i, name := range []string{c.cfg.Certificate, c.cfg.Key} {
		info, err := os.Stat(name)
		if err != nil {
			return files, err
		}
		files[i] = fileState{info.ModTime(), info.Size()}
	}
	return files, nil
}

// load reads the pair; files is their state before.
func (c *certificate) load(files [2]fileState) error {
	pair, err := c.cfg.Pair()
	if err != nil {
		return err
	}
	c.pair, c.files, c.looked = &pair, files, time.Now()
	return nil
}

// get returns the certificate for a handshake. Files that have become invalid change nothing:
// they may be half written.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.looked) < lookAgain {
		return c.pair, nil
	}
	c.looked = time.Now()
	files, err := c.state()
	if err == nil && files == c.files {
		return c.pair, nil
	}
	if err == nil {
		err = c.load(files)
	}
	if err != nil {
		c.log.Warn("certificate not reloaded; the old one stays in effect", "error", err)
	} else {
		c.log.Info("certificate reloaded", "file", c.cfg.Certificate, "expires", c.pair.Leaf.NotAfter)
	}
	return c.pair, nil
}

// expires returns when the certificate expires that a handshake would get now.
func (c *certificate) expires() time.Time {
	pair, _ := c.get(nil) // it returns no error
	return pair.Leaf.NotAfter
}

// tlsListener accepts TLS connections. They have HTTP/1.1 only: with HTTP/2, all blobs of a
// client would share a connection, at twice the cost.
type tlsListener struct {
	net.Listener
	config *tls.Config
	log    *slog.Logger
	bulk   *bulk
}

func newTLSListener(l net.Listener, c *certificate) *tlsListener {
	return &tlsListener{Listener: l, log: c.log, bulk: newBulk(), config: &tls.Config{
		MinVersion: tls.VersionTLS12, GetCertificate: c.get, NextProtos: []string{"http/1.1"},
		DynamicRecordSizingDisabled: true, // a blob's records have the full size from the first on
	}}
}

func (l *tlsListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	accepted := connectionOf(c)
	if accepted != nil {
		accepted.sealed = true
	}
	w := &wire{Conn: c}
	return &tlsConn{Conn: tls.Server(w, l.config), accepted: accepted, wire: w, listener: l}, nil
}

// tlsConn is a TLS connection that sends content in bulk. It hides the *tls.Conn
// from net/http, which would copy 32 KiB at a time and write each record by itself.
type tlsConn struct {
	*tls.Conn
	accepted *connection // nil: of another listener
	wire     *wire
	listener *tlsListener
	greeted  bool                // the handshake has been tried; owned by the reader
	state    tls.ConnectionState // after the handshake
}

var _ io.ReaderFrom = (*tlsConn)(nil)

// Read does the handshake first, within the server's time for a request's header.
func (c *tlsConn) Read(p []byte) (int, error) {
	if !c.greeted {
		c.greeted = true
		if err := c.HandshakeContext(context.Background()); err != nil { // the deadline of reads bounds it
			c.explain(err)
			return 0, err
		}
		c.state = c.ConnectionState()
	}
	n, err := c.Conn.Read(p)
	if c.accepted != nil && c.accepted.head.exceeds(p[:n]) {
		return 0, refuseHead(c.Conn)
	}
	return n, err
}

// explain logs why the handshake failed, and answers a client that sent HTTP.
func (c *tlsConn) explain(err error) {
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
		return // a probe, or a client that disconnected
	}
	c.listener.log.Info("TLS handshake failed", "client", c.RemoteAddr().String(), "error", err)
	if record, ok := errors.AsType[tls.RecordHeaderError](err); ok && record.Conn != nil {
		switch string(record.RecordHeader[:]) {
		case "GET /", "HEAD ":
			_, _ = io.WriteString(record.Conn, "HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\n\r\n"+
				"This mirror speaks TLS: write https:// before its name.\n") // the client may have left
		}
	}
}

// ReadFrom sends all of src. net/http calls it with a response's body.
func (c *tlsConn) ReadFrom(src io.Reader) (n int64, err error) {
	b := c.listener.bulk.take()
	if b == nil {
		return io.Copy(struct{ io.Writer }{c.Conn}, src)
	}
	defer c.listener.bulk.give(b)
	c.wire.hold(b.records[:0])
	defer func() { err = errors.Join(err, c.wire.letGo()) }()
	for {
		m, rerr := src.Read(b.content[:])
		if m > 0 {
			if _, err := c.Write(b.content[:m]); err != nil {
				return n, err
			}
			if err := c.wire.send(); err != nil {
				return n, err
			}
			n += int64(m)
		}
		switch {
		case errors.Is(rerr, io.EOF):
			return n, nil
		case rerr != nil:
			return n, rerr
		}
	}
}

// wire is the connection below TLS. It can hold records, to send many at once.
type wire struct {
	net.Conn

	mu   sync.Mutex // guards held; TLS may write at any time
	held []byte     // nil: nothing is held
}

// NetConn returns the connection that it writes to.
func (w *wire) NetConn() net.Conn { return w.Conn }

func (w *wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held == nil {
		return w.Conn.Write(p)
	}
	w.held = append(w.held, p...)
	return len(p), nil
}

// hold makes Write gather records in buf.
func (w *wire) hold(buf []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held = buf
}

// letGo sends what is still held. After it, Write holds nothing.
func (w *wire) letGo() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	err := w.sendLocked()
	w.held = nil
	return err
}

// send sends what is held.
func (w *wire) send() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sendLocked()
}

func (w *wire) sendLocked() error {
	if len(w.held) == 0 {
		return nil
	}
	_, err := w.Conn.Write(w.held)
	w.held = w.held[:0]
	return err
}

const (
	// bulkSize bytes are read and encrypted at a time.
	bulkSize = 128 << 10
	// maxBulk bounds the responses with buffers of that size; others have a quarter of it, and
	// take longer.
	maxBulk = 64
)

// bulk has the buffers for responses.
type bulk struct {
	places chan struct{} // one is held by each response
	pool   sync.Pool
}

type bulkBuffers struct {
	content [bulkSize]byte
	records [bulkSize + bulkSize/16]byte // a record of 16 KiB has less than 1 KiB of overhead
}

func newBulk() *bulk {
	return &bulk{places: make(chan struct{}, maxBulk), pool: sync.Pool{New: func() any { return new(bulkBuffers) }}}
}

// take returns buffers; nil: none are left.
func (b *bulk) take() *bulkBuffers {
	select {
	case b.places <- struct{}{}:
		return b.pool.Get().(*bulkBuffers)
	default:
		return nil
	}
}

func (b *bulk) give(buffers *bulkBuffers) {
	b.pool.Put(buffers)
	<-b.places
}

// connKey is the context key of a request's connection.
type connKey struct{}

// overTLS sets the TLS field of the server's requests: net/http cannot see that they came over
// TLS.
func overTLS(s *http.Server) {
	h := s.Handler
	s.ConnContext = func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) }
	s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, ok := r.Context().Value(connKey{}).(*tlsConn); ok {
			r.TLS = &c.state
		}
		h.ServeHTTP(w, r)
	})
}
