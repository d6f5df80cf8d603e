package config

import (
	"reflect"
	"slices"
	"strings"

	"github.com/cachalot-registry/cachalot/upstream"
)

// Account is one of several accounts at a registry. It is given in one of
// three ways: username with a password, docker_config, or keychain.
type Account struct {
	Username string `yaml:"username"`
	Password string `yaml:"password"`
	// PasswordFile is read again for each token, so that a secret can be rotated.
	PasswordFile string `yaml:"password_file"`
	// DockerConfig is a docker config.json with the registry in it.
	DockerConfig string `yaml:"docker_config"`
	// Keychain is the cloud whose account cachalot runs as: ecr, google or azure.
	Keychain string `yaml:"keychain"`
}

func accountKeys() []string { return fieldNames(reflect.TypeFor[Account]()) }

// given are the keys of a that have a value, in the order of the fields.
func (a Account) given() []string {
	var keys []string
	for f, value := range reflect.ValueOf(a).Fields() {
		if !value.IsZero() {
			keys = append(keys, f.Tag.Get("yaml"))
		}
	}
	return keys
}

// beside is the account whose keys stand beside the registry's URL; zero if
// there is none.
func (u Upstream) beside() Account {
	return Account{u.Username, u.Password, u.PasswordFile, u.DockerConfig, u.Keychain}
}

func (u Upstream) accounts() []upstream.Account {
	configured := u.Accounts
	if one := u.beside(); one != (Account{}) {
		configured = []Account{one}
	}
	var accounts []upstream.Account
	for _, a := range configured {
		accounts = append(accounts, upstream.Account(a))
	}
	return accounts
}

// keyOf is where the file has what an [upstream.KeyError] names: a single account, or
// URL, may be the only item of a list.
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
