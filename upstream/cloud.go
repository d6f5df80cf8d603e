package upstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"
)

// keychain makes the asker of a cloud, nil where there is none of the name.
func keychain(name string) func(registry string, base *url.URL, rt http.RoundTripper) (asker, error) {
	switch name {
	case "ecr":
		return newECR
	case "google":
		return newGoogle
	case "azure":
		return newAzure
	}
	return nil
}

// hosts are those that say which of a cloud's registries base is: its own, or
// the one in the name, where base is another way to it.
func hosts(registry string, base *url.URL) []string {
	list := []string{bareHost(base.Hostname())}
	if u, err := url.Parse("//" + registry); err == nil && bareHost(u.Hostname()) != list[0] {
		list = append(list, bareHost(u.Hostname()))
	}
	return list
}

// unfit says that a keychain is not for any of hosts.
func unfit(hosts []string, name, fits string) error {
	return fmt.Errorf("%s is for %s, and %s is not one: remove it, or set username or docker_config", name, fits, strings.Join(hosts, " or "))
}

// once is an http.Transport for what is asked a few times a day.
func once() *http.Transport {
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DisableKeepAlives:   true,
		ForceAttemptHTTP2:   true,
		TLSHandshakeTimeout: 10 * time.Second,
	}
}

// told is what of a cloud library's error may be told, nil if nothing may: the
// rest can quote files, the output of programs, requests and answers.
func told(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if u, ok := errors.AsType[*url.Error](err); ok { // the path of some is a secret
		host := "a server"
		if at, err := url.Parse(u.URL); err == nil {
			host = at.Host
		}
		return fmt.Errorf("ask %s: %w", host, u.Err)
	}
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p
	}
	return nil
}

// errUntold stands for an error that may quote a secret.
var errUntold = errors.New("failed; the reason is withheld because it may contain a secret")

var (
	oauthCode = regexp.MustCompile(`^[a-zA-Z_]{1,40}$`)
	entraCode = regexp.MustCompile(`^AADSTS[0-9]{1,10}`)
)

// refused tells of the answer of an OAuth 2 server, which may echo what it was
// sent, no more than the codes in it (RFC 6749 section 5.2, and Entra ID's own).
func refused(host string, status int, body []byte) error {
	var wire struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}
	_ = json.Unmarshal(body, &wire) // what is not JSON has no code
	text := fmt.Sprintf("%s answered %d", host, status)
	if oauthCode.MatchString(wire.Error) {
		text += " " + wire.Error
	}
	if code := entraCode.FindString(wire.Description); code != "" {
		text += " " + code
	}
	return errors.New(text)
}
