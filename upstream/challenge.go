package upstream

import "strings"

// challenge is what a registry asks for in WWW-Authenticate.
type challenge struct {
	scheme                string // "bearer" or "basic"
	realm, service, scope string
}

type param struct{ name, value string }

// parseChallenge picks the challenge to answer among WWW-Authenticate headers
// (RFC 9110 section 11.6.1): the first Bearer, else the first Basic.
func parseChallenge(headers []string) (challenge, bool) {
	var basic *challenge
	for _, h := range headers {
		for _, c := range scanChallenges(h) {
			switch {
			case c.scheme == "bearer" && c.realm != "":
				return c, true
			case c.scheme == "basic" && basic == nil:
				basic = &c
			}
		}
	}
	if basic == nil {
		return challenge{}, false
	}
	return *basic, true
}

// scanChallenges reads the challenges of one header up to the first syntax error. A name
// that is followed by "=" is a parameter, any other a scheme.
func scanChallenges(s string) []challenge {
	var list []challenge
	for {
		s = strings.TrimLeft(s, " \t,")
		name, rest := scanToken(s)
		if name == "" {
			return list
		}
		after := strings.TrimLeft(rest, " \t")
		if !strings.HasPrefix(after, "=") {
			list = append(list, challenge{scheme: strings.ToLower(name)})
			if rest != "" && rest[0] != ' ' && rest[0] != '\t' && rest[0] != ',' {
				return list
			}
			s = rest
			continue
		}
		p, rest, ok := scanParam(s)
		if !ok || len(list) == 0 {
			return list
		}
		c := &list[len(list)-1]
		switch strings.ToLower(p.name) {
		case "realm":
			c.realm = p.value
		case "service":
			c.service = p.value
		case "scope":
			c.scope = p.value
		}
		s = rest
	}
}

// scanParam takes name=value or name="quoted value" off the front of s.
func scanParam(s string) (p param, rest string, ok bool) {
	p.name, s = scanToken(s)
	s = strings.TrimLeft(s, " \t")
	if p.name == "" {
		return param{}, "", false
	}
	if !strings.HasPrefix(s, "=") {
		return p, s, true
	}
	s = strings.TrimLeft(s[1:], " \t")
	if !strings.HasPrefix(s, `"`) {
		end := strings.IndexAny(s, " \t,;")
		if end < 0 {
			end = len(s)
		}
		p.value = s[:end]
		return p, s[end:], p.value != ""
	}
	var value strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			p.value = value.String()
			return p, s[i+1:], true
		case '\\':
			i++
			if i == len(s) {
				return param{}, "", false
			}
		}
		value.WriteByte(s[i])
	}
	return param{}, "", false
}

// scanToken takes a token (RFC 9110 section 5.6.2) off the front of s.
func scanToken(s string) (token, rest string) {
	i := 0
	for i < len(s) && isTokenByte(s[i]) {
		i++
	}
	return s[:i], s[i:]
}

func isTokenByte(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' ||
		strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}
