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

// keychain returns the constructor of a cloud's asker; nil if no cloud has the name.
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

// hosts returns the hosts that may say which of a cloud's registries base is: its own, and
// the one in the registry's name if that differs: base may be another address of it.
func hosts(registry string, base *url.URL) []string {
	list := []string{bareHost(base.Hostname())}
	if u, err := url.Parse("//" + registry); err == nil && bareHost(u.Hostname()) != list[0] {
		list = append(list, bareHost(u.Hostname()))
	}
	return list
}

// unfit returns the error of a keychain that supports none of hosts.
func unfit(hosts []string, name, fits string) error {
	return fmt.Errorf("%s is for %s, and %s is not one: remove it, or set username or docker_config", name, fits, strings.Join(hosts, " or "))
}

// once returns an http.Transport for requests that are sent a few times a day.
func once() *http.Transport {
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DisableKeepAlives:   true,
		ForceAttemptHTTP2:   true,
		TLSHandshakeTimeout: 10 * time.Second,
	}
}

// told returns the part of a cloud library's error that may be shown; nil if there is none.
// The rest can quote files, the output of programs, requests and responses.
func told(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if u, ok := errors.AsType[*url.Error](err); ok { // the path of some URLs is a secret
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

// refused returns the error of an OAuth 2 server's response. It has only the status and the
// codes (RFC 6749 section 5.2, and Entra ID's own): the rest may repeat the request.
func refused(host string, status int, body []byte) error {
	var wire struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}
	_ = json.Unmarshal(body, &wire) // a body that is not JSON has no code
	text := fmt.Sprintf("%s answered %d", host, status)
	if oauthCode.MatchString(wire.Error) {
		text += " " + wire.Error
	}
	if code := entraCode.FindString(wire.Description); code != "" {
		text += " " + code
	}
	return errors.New(text)
}
