package config

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cachalot-registry/cachalot/upstream"
)

const (
	// minToken makes a random token impossible to guess. maxToken is far above any real one.
	minToken = 16
	maxToken = 4 << 10
)

// ReadToken returns the configured token, and the key that has it.
func (c Admin) ReadToken() (key, token string, err error) {
	if c.TokenFile == "" {
		return "admin.token", c.Token, nil
	}
	b, err := upstream.ReadSecret(c.TokenFile, maxToken)
	if err != nil {
		return "admin.token_file", "", err
	}
	token = strings.TrimSpace(string(b))
	return "admin.token_file", token, checkToken(token)
}

// checkToken checks a token. Its errors never contain it.
func checkToken(token string) error {
	switch {
	case len(token) < minToken:
		return fmt.Errorf("%d characters; a token has %d or more, as from openssl rand -hex 32", len(token), minToken)
	case len(token) > maxToken || strings.ContainsAny(token, " \t\r\n"):
		return errors.New("the token has spaces, or is too long; write one word, as from openssl rand -hex 32")
	}
	return nil
}

func (v *validator) admin(c Admin) {
	if c.Token != "" && c.TokenFile != "" {
		v.fail("given along with token; keep one of the two", "admin.token_file")
		return
	}
	if c.Token != "" {
		if err := checkToken(c.Token); err != nil {
			v.fail(err.Error(), "admin.token")
		}
	}
	if c.TokenFile != "" {
		if _, _, err := c.ReadToken(); err != nil {
			message := err.Error()
			if _, unreadable := errors.AsType[*os.PathError](err); unreadable {
				message += "; write the path of a file that cachalot can read"
			}
			v.fail(message, "admin.token_file")
		}
	}
}
