package ops

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
	"unicode"

	"github.com/cachalot-registry/cachalot/proxy/admin"
	"github.com/spf13/pflag"
)

// DefaultAdmin is the URL of admin.listen's default.
const DefaultAdmin = "http://127.0.0.1:5001"

const (
	connectTime = 5 * time.Second
	// answerTime is long enough for the sums of an index with millions of blobs on a slow disk.
	answerTime = 2 * time.Minute
	// silence is how long a stream, which has a line each second, may send nothing.
	silence    = time.Minute
	maxAnswer  = 64 << 20
	maxProblem = 64 << 10
	maxToken   = 4 << 10
)

// Mirror is a running mirror, as flags and the environment name it.
type Mirror struct {
	URL       string // of admin.listen; "": CACHALOT_ADMIN, or [DefaultAdmin]
	TokenFile string // "": the token is in CACHALOT_ADMIN_TOKEN, or none is sent
}

// Flags adds the flags that name the mirror and its token.
func (m *Mirror) Flags(f *pflag.FlagSet) {
	f.StringVar(&m.URL, "admin", "", "`URL` of the mirror's admin.listen; default: CACHALOT_ADMIN, or "+DefaultAdmin)
	f.StringVar(&m.TokenFile, "token-file", "", "`FILE` with the token of admin.token; default: CACHALOT_ADMIN_TOKEN")
}

// client sends requests to one mirror.
type client struct {
	base  *url.URL
	token string // "": none is sent
	http  *http.Client
}

func (m *Mirror) client() (*client, error) {
	base, err := m.base()
	if err != nil {
		return nil, err
	}
	token, err := m.token()
	if err != nil {
		return nil, err
	}
	return &client{
		base: base, token: token,
		http: &http.Client{
			// No proxy, as for healthcheck: admin.listen is not public.
			Transport: &http.Transport{
				DialContext:           (&net.Dialer{Timeout: connectTime}).DialContext,
				TLSHandshakeTimeout:   connectTime,
				ResponseHeaderTimeout: answerTime,
			},
			// The API has no redirects, and the token must not go to another host.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

func (c *client) close() { c.http.CloseIdleConnections() }

func (m *Mirror) base() (*url.URL, error) {
	text, from := m.URL, "--admin"
	if text == "" {
		text, from = os.Getenv("CACHALOT_ADMIN"), "CACHALOT_ADMIN"
	}
	text = cmp.Or(text, DefaultAdmin)
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	u, err := url.Parse(text)
	switch {
	case err == nil && u.User != nil:
		return nil, errorf(Usage, "%s: the URL has a password; write the token to CACHALOT_ADMIN_TOKEN, or to a file for --token-file", from)
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.RawQuery != "" || u.Fragment != "":
		return nil, errorf(Usage, "%s: %q is not the URL of a mirror's admin.listen; write one such as %s", from, text, DefaultAdmin)
	}
	u.Path = strings.TrimSuffix(u.Path, "/")
	return u, nil
}

// token reads the token. Its errors never contain it.
func (m *Mirror) token() (string, error) {
	text, from := os.Getenv("CACHALOT_ADMIN_TOKEN"), "CACHALOT_ADMIN_TOKEN"
	if m.TokenFile != "" {
		from = m.TokenFile
		f, err := os.Open(m.TokenFile)
		if err != nil {
			return "", errorf(Usage, "--token-file: %w", err)
		}
		defer func() { _ = f.Close() }() // only read from
		b, err := io.ReadAll(io.LimitReader(f, maxToken+1))
		if err != nil {
			return "", errorf(Usage, "--token-file: %w", err)
		}
		if text = string(b); strings.TrimSpace(text) == "" {
			return "", errorf(Usage, "--token-file: %s is empty", m.TokenFile)
		}
	}
	text = strings.TrimSpace(text)
	if len(text) > maxToken || strings.ContainsFunc(text, func(r rune) bool { return r > unicode.MaxASCII || unicode.IsSpace(r) || unicode.IsControl(r) }) {
		return "", errorf(Usage, "%s: not a token; write one word of ASCII, as from openssl rand -hex 32", from)
	}
	return text, nil
}

// ask sends a request, and returns the response if it is a success.
func (c *client) ask(ctx context.Context, method, path string, query url.Values, body any) (*http.Response, error) {
	u := c.base.JoinPath("api", "v1", path)
	u.RawQuery = query.Encode()
	var content io.Reader = http.NoBody
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		content = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), content)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if of, ok := errors.AsType[*url.Error](err); ok {
			err = of.Err // the message has the URL already
		}
		return nil, c.unreachable(ctx, err)
	}
	if resp.StatusCode < http.StatusMultipleChoices {
		return resp, nil
	}
	defer resp.Body.Close()
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "application/problem+json") {
		p := admin.Problem{}
		if b, err := io.ReadAll(io.LimitReader(resp.Body, maxProblem)); err == nil && json.Unmarshal(b, &p) == nil && p.Detail != "" {
			p.Status = resp.StatusCode
			return nil, refused(&p)
		}
	}
	return nil, errorf(Failed, "%s answers %s, which is not from cachalot's admin API; give --admin the address of admin.listen, not that of listen", c.base, resp.Status)
}

// get sends a GET and reads the whole response.
func (c *client) get(ctx context.Context, path string, query url.Values) ([]byte, error) {
	return c.whole(ctx, http.MethodGet, path, query, nil)
}

// send sends a request for a change, and reads the whole response.
func (c *client) send(ctx context.Context, method, path string, query url.Values, body any) ([]byte, error) {
	return c.whole(ctx, method, path, query, body)
}

func (c *client) whole(ctx context.Context, method, path string, query url.Values, body any) ([]byte, error) {
	resp, err := c.ask(ctx, method, path, query, body)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if resp.StatusCode != http.StatusNoContent && !json.Valid(b) {
		return nil, errorf(Failed, "%s answers without JSON, so it is not cachalot's admin API; give --admin the address of admin.listen", c.base)
	}
	return b, nil
}

// read decodes a response into its type of package admin.
func (c *client) read(b []byte, into any) error {
	if err := json.Unmarshal(b, into); err != nil {
		return errorf(Failed, "cannot read the answer of %s, which may be another version of cachalot: %w", c.base, err)
	}
	return nil
}

// stream calls line for each line of a long response. It fails if the mirror sends nothing for
// silence.
func (c *client) stream(ctx context.Context, path string, body any, line func([]byte) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	resp, err := c.ask(ctx, http.MethodPost, path, nil, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	quiet := time.AfterFunc(silence, func() { cancel(errors.New("no line for a minute")) })
	defer quiet.Stop()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxAnswer)
	for lines.Scan() {
		quiet.Reset(silence)
		if err := line(lines.Bytes()); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return c.unreachable(ctx, cmp.Or(context.Cause(ctx), err))
	}
	return nil
}
