package admin

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/cachalot-registry/cachalot/bounds"
	"github.com/cachalot-registry/cachalot/proxy"
	"github.com/cachalot-registry/cachalot/upstream"
)

// pinnedBy names what pins a repository: rules of the configuration, and patterns of run-time
// pins.
func (c *call) pinnedBy(upstream, repository string) []string {
	by := []string{}
	for i, r := range c.p.Rules() {
		if r.Pin != nil && r.Matches(upstream+"/"+repository, "") {
			if *r.Pin {
				by = append(by, fmt.Sprintf("rules[%d]", i))
			}
			break // the first rule with pin decides
		}
	}
	for _, pin := range c.Pins.list() {
		if pin.matches(upstream, repository) {
			by = append(by, pin.Pattern)
		}
	}
	return by
}

// PinsAnswer is the response of GET pins.
type PinsAnswer struct {
	Pins []PinAnswer `json:"pins"`
}

// PinAnswer is a pin: the response of POST pins.
type PinAnswer struct {
	Match   string    `json:"match"`
	Source  string    `json:"source"` // api, or the rule of the configuration
	Created time.Time `json:"created,omitzero"`
	Comment string    `json:"comment,omitempty"`
}

func (c *call) pins() error {
	answer := PinsAnswer{Pins: []PinAnswer{}}
	for i, r := range c.p.Rules() {
		if !r.Pins() {
			continue
		}
		for _, pattern := range r.Match {
			answer.Pins = append(answer.Pins, PinAnswer{Match: pattern, Source: fmt.Sprintf("rules[%d]", i)})
		}
	}
	for _, pin := range c.Pins.list() {
		answer.Pins = append(answer.Pins, apiPin(pin))
	}
	return c.answer(answer)
}

func apiPin(p Pin) PinAnswer {
	return PinAnswer{Match: p.Pattern, Source: "api", Created: p.Created.UTC(), Comment: p.Comment}
}

const (
	maxComment = 200
	maxPattern = 255
)

// PinRequest is the body of POST pins.
type PinRequest struct {
	Match   string `json:"match"`
	Comment string `json:"comment,omitempty"`
}

func (c *call) pin() error {
	var wanted PinRequest
	if err := c.body(&wanted); err != nil {
		return err
	}
	c.audit.target = wanted.Match
	pattern, err := c.pinPattern(wanted.Match)
	if err != nil {
		return err
	}
	c.audit.target = pattern
	if len(wanted.Comment) > maxComment {
		return invalid("comment", "longer than %d characters", maxComment)
	}
	pin, added, err := c.Pins.add(Pin{Pattern: pattern, Created: time.Now().UTC().Truncate(time.Second), Comment: wanted.Comment})
	switch {
	case errors.Is(err, errTooManyPins):
		return problemf(http.StatusConflict, "too_many", "%v; use patterns such as docker.io/acme/**", err)
	case err != nil:
		return err
	case added:
		return c.answerAs(http.StatusCreated, apiPin(pin))
	}
	c.audit.attrs = append(c.audit.attrs, slog.Bool("unchanged", true))
	return c.answer(apiPin(pin))
}

// pinPattern returns the pattern of a name or pattern. It parses the name of a repository as
// docker does; in a pattern the name must be in full.
func (c *call) pinPattern(match string) (string, error) {
	if match == "" {
		return "", invalid("match", "missing; write a repository such as docker.io/library/alpine, or a pattern such as docker.io/acme/**")
	}
	if !strings.ContainsAny(match, "*?[{\\") {
		i, err := c.parseImage("match", match)
		if err != nil {
			return "", err
		}
		if i.tag != "" || i.digest != "" {
			return "", invalid("match", "%q has a tag or digest, and pins are for whole repositories; write %s/%s", bounds.Text(match), i.upstream, i.repo)
		}
		return i.upstream + "/" + i.repo, nil
	}
	yes := true
	if len(match) > maxPattern {
		return "", invalid("match", "longer than %d characters", maxPattern)
	}
	if at, ok := errors.AsType[*upstream.KeyError]((proxy.Rule{Match: []string{match}, Pin: &yes}).Validate(0)); ok {
		return "", invalid("match", "%v", at.Err)
	}
	return match, nil
}

func (c *call) unpin() error {
	match := c.query.Get("match")
	c.audit.target = match
	pattern := match
	if !c.Pins.has(match) { // a pin as GET pins lists it stays as it is
		var err error
		if pattern, err = c.pinPattern(match); err != nil {
			return err
		}
	}
	c.audit.target = pattern
	removed, err := c.Pins.remove(pattern)
	switch {
	case err != nil:
		return err
	case removed:
		c.w.WriteHeader(http.StatusNoContent)
		return nil
	}
	for i, r := range c.p.Rules() {
		for _, configured := range r.Match {
			if r.Pins() && configured == pattern {
				return problemf(http.StatusConflict, "configured", "rules[%d] of cachalot's configuration pins %s; remove it there, and reload", i, pattern)
			}
		}
	}
	return problemf(http.StatusNotFound, "not_pinned", "%s is not a pin; GET %spins lists them", pattern, apiRoot)
}
