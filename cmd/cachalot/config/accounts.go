package config

import (
	"reflect"
	"slices"
	"strings"

	"github.com/cachalot-registry/cachalot/upstream"
)

func accountKeys() []string { return fieldNames(reflect.TypeFor[upstream.Account]()) }

// given returns the keys of an account that have a value, in the order of the fields.
func given(a upstream.Account) []string {
	var keys []string
	for f, value := range reflect.ValueOf(a).Fields() {
		if !value.IsZero() {
			keys = append(keys, f.Tag.Get("yaml"))
		}
	}
	return keys
}

// beside returns the account whose keys are next to the registry's URL; zero: there is none.
func (u Upstream) beside() upstream.Account {
	return upstream.Account{Username: u.Username, Password: u.Password, PasswordFile: u.PasswordFile, DockerConfig: u.DockerConfig, Keychain: u.Keychain}
}

func (u Upstream) accounts() []upstream.Account {
	if one := u.beside(); one != (upstream.Account{}) {
		return []upstream.Account{one}
	}
	return u.Accounts
}

// keyOf returns the key in the file for the key of an [upstream.KeyError]: there, a single
// account or URL may be the only item of a list.
func (u Upstream) keyOf(name, key string) string {
	at := join("upstreams", name)
	switch last, ok := strings.CutPrefix(key, at+"."); {
	case ok && len(u.Accounts) == 1 && slices.Contains(accountKeys(), last):
		return at + ".accounts[0]." + last
	case ok && last == "url" && len(u.URLs) == 1:
		return at + ".urls[0]"
	}
	return key
}
