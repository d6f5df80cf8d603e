package dind

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"syscall"
	"time"
)

const (
	probeTimeout   = 3 * time.Second
	versionTimeout = 10 * time.Second
)

// Run carries out the plan, and then replaces this process by the base's entrypoint, with the
// given arguments. It returns only if that fails; errors about variables are of type
// [*VariableError].
func Run(ctx context.Context, args, registries []string, stderr io.Writer) error {
	base, err := exec.LookPath(entrypoint)
	if err != nil {
		return fmt.Errorf(`%s is not in PATH: "cachalot dind" is the entrypoint of images made from docker:dind; see "cachalot help dind"`, entrypoint)
	}
	in := Input{Args: args, Env: os.Environ(), UID: os.Getuid(), Home: home(), Root: "/", Registries: registries}
	if _, daemon := flagsAt(args); daemon && os.Getenv(mirrorVariable) != "" {
		in.Version = installed(ctx)
	}
	plan, err := NewPlan(in)
	if err != nil {
		return err
	}
	plan.do(ctx, in.Root, stderr)
	// Exec keeps the PID, so signals for it reach the base.
	err = syscall.Exec(base, append([]string{entrypoint}, plan.Args...), plan.Env)
	return fmt.Errorf("start %s: %w", base, err)
}

func home() string {
	if dir, err := os.UserHomeDir(); err == nil {
		return dir
	}
	if u, err := user.Current(); err == nil {
		return u.HomeDir
	}
	return ""
}

// installed asks dockerd for its version.
func installed(ctx context.Context) version {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, "dockerd", "--version").Output()
	if err != nil {
		return version{}
	}
	return parseVersion(string(out))
}

// do carries out the plan and prints its log. If a step fails, dockerd still runs, without the
// mirror.
func (p Plan) do(ctx context.Context, root Root, stderr io.Writer) {
	var failed []error
	for _, path := range p.Gone {
		if err := root.remove(path); err != nil {
			failed = append(failed, err)
		}
	}
	for _, f := range p.Files {
		if err := root.write(f); err != nil {
			failed = append(failed, err)
		}
	}
	for _, line := range p.Log {
		say(stderr, line)
	}
	for _, err := range failed {
		say(stderr, "warning: "+err.Error())
	}
	if p.probe == nil {
		return
	}
	if err := p.probe.ask(ctx); err != nil {
		say(stderr, "warning: "+err.Error()+"; it is asked again at each pull")
	}
}

func say(w io.Writer, line string) {
	_, _ = fmt.Fprintf(w, "cachalot: %s\n", line) // there is no other place to report this error
}

// probe checks that a URL is that of a mirror, by the request that dockerd will send.
type probe struct {
	mirror *url.URL
	ca     []byte // PEM, in addition to the system's; nil: none
}

func (p probe) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	transport := &http.Transport{DisableKeepAlives: true}
	if p.ca != nil {
		roots, err := x509.SystemCertPool()
		if err != nil {
			roots = x509.NewCertPool()
		}
		roots.AppendCertsFromPEM(p.ca)
		transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	}
	client := &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	address := p.mirror.String() + "/v2/"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, http.NoBody)
	if err != nil {
		return fmt.Errorf("ask the mirror: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("the mirror does not answer: %w", explained(err, p.ca))
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("this is not a mirror: GET %s: %s", address, resp.Status)
	}
	return nil
}

// explained adds what to do if the mirror's certificate is not trusted here.
func explained(err error, ca []byte) error {
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); !ok {
		return err
	}
	if ca == nil {
		return fmt.Errorf("%w; write its CA's certificate in %s", err, caVariable)
	}
	return fmt.Errorf("%w, also with %s", err, caVariable)
}
