package ops

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/cachalot-registry/cachalot/proxy/admin"
)

// Exit codes of an [Error].
const (
	Failed   = 1 // the mirror cannot be reached, or could not do it
	Usage    = 2 // an argument or a value is wrong
	NotFound = 3 // it is not stored, or not pinned
	Refused  = 4 // the token is missing or wrong, or the mirror does not serve this host name
)

// Error is an error with an exit code. Its message is for people, and safe for a terminal.
type Error struct {
	Code    int // of the process
	message string
	err     error
}

func (e *Error) Error() string { return e.message }
func (e *Error) Unwrap() error { return e.err }

func errorf(code int, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, message: safe(err.Error()), err: errors.Unwrap(err)}
}

// errInterrupted is the cause of a context that ends by Ctrl-C or SIGTERM.
var errInterrupted = errors.New("interrupted")

// inWords replaces the API's operations in a message by commands.
func inWords(detail string) string {
	return strings.NewReplacer(
		"GET /api/v1/repositories lists", "cachalot ls lists",
		"GET /api/v1/pins lists", "cachalot pin lists",
		"send pinned: true", "give --pinned",
		": Authorization: Bearer TOKEN", "",
	).Replace(detail)
}

// refused returns the error for a problem of the API.
func refused(p *admin.Problem) *Error {
	detail := inWords(p.Detail)
	code := Failed
	switch p.Status {
	case http.StatusBadRequest, http.StatusUnprocessableEntity:
		code = Usage
	case http.StatusNotFound:
		code = NotFound
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusMisdirectedRequest:
		code = Refused
		if p.Status == http.StatusUnauthorized {
			detail += "; write it to CACHALOT_ADMIN_TOKEN, or give its file with --token-file"
		}
	}
	return errorf(code, "%s%w", detail, &silent{p})
}

// silent has a cause whose text the message has already.
type silent struct{ error }

func (*silent) Error() string   { return "" }
func (s *silent) Unwrap() error { return s.error }

// unreachable returns the error of a request without a complete response.
func (c *client) unreachable(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errInterrupted) {
		return errInterrupted
	}
	return errorf(Failed, "no answer from the mirror at %s: %w; does cachalot run there, with this admin.listen? --admin or CACHALOT_ADMIN names another", c.base, err)
}
