package upstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"syscall"
	"time"

	helper "github.com/docker/docker-credential-helpers/client"
	helpers "github.com/docker/docker-credential-helpers/credentials"
	"github.com/google/go-containerregistry/pkg/authn"
)

const (
	helperPrefix = "docker-credential-"
	// tokenUser is the user name that says that the secret is an identity token.
	tokenUser = "<token>"
	// helperGrace is how long a helper's children may hold its output open after it has
	// ended.
	helperGrace = time.Second
	// maxComplaint bounds what is stored of a helper's stderr.
	maxComplaint = 4 << 10
)

// askHelper runs docker-credential-NAME. Its stdout never gets into the error, because that
// is the secret.
func askHelper(ctx context.Context, name, server string) (authn.AuthConfig, error) {
	name = helperPrefix + name
	var p *program
	found, err := helper.Get(func(args ...string) helper.Program {
		p = &program{ctx: ctx, name: name, args: args}
		return p
	}, server)
	switch {
	case err == nil && found.Username == tokenUser:
		return authn.AuthConfig{IdentityToken: found.Secret}, nil
	case err == nil:
		return authn.AuthConfig{Username: found.Username, Password: found.Secret}, nil
	case helpers.IsErrCredentialsNotFound(err):
		return authn.AuthConfig{}, nil
	case p.failed != nil:
		return authn.AuthConfig{}, fmt.Errorf("run %s: %w%s", name, p.failed, p.complaint())
	default:
		return authn.AuthConfig{}, fmt.Errorf("run %s: its output is not a credential in JSON%s", name, p.complaint())
	}
}

// program is a helper.Program that ends with ctx, along with its children.
type program struct {
	ctx    context.Context
	name   string
	args   []string
	input  io.Reader
	stdout bounded
	stderr tail
	failed error
}

func (p *program) Input(r io.Reader) { p.input = r }

func (p *program) Output() ([]byte, error) {
	cmd := exec.CommandContext(p.ctx, p.name, p.args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.input, &p.stdout, &p.stderr
	cmd.WaitDelay = helperGrace
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	err := cmd.Run()
	switch {
	case p.stdout.full:
		err = errTooMuch
	case errors.Is(err, exec.ErrWaitDelay): // it left a daemon behind, such as gpg-agent
		err = nil
	case err != nil && p.ctx.Err() != nil:
		err = context.Cause(p.ctx)
	}
	p.failed = err
	return p.stdout.text, err
}

// complaint returns the last line on stderr, to append to an error. The secret is removed:
// a script that traces its commands writes it there too.
func (p *program) complaint() string {
	text := strings.TrimSpace(string(p.stderr.text))
	text = text[strings.LastIndexByte(text, '\n')+1:]
	var wrote helpers.Credentials
	if json.Unmarshal(p.stdout.text, &wrote) == nil && wrote.Secret != "" {
		text = strings.ReplaceAll(text, wrote.Secret, "[redacted]")
	}
	if text = printable(text, 200); text == "" {
		return ""
	}
	return ": " + text
}

// bounded stores at most maxTokenAnswer bytes.
type bounded struct {
	text []byte
	full bool
}

var errTooMuch = fmt.Errorf("it wrote more than %d bytes", maxTokenAnswer)

func (b *bounded) Write(p []byte) (int, error) {
	if b.full = len(b.text)+len(p) > maxTokenAnswer; b.full {
		return 0, errTooMuch // closes the pipe, and so ends the program
	}
	b.text = append(b.text, p...)
	return len(p), nil
}

// tail stores the last maxComplaint bytes that are written to it.
type tail struct{ text []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.text = append(t.text, p...)
	t.text = t.text[max(len(t.text)-maxComplaint, 0):]
	return len(p), nil
}
