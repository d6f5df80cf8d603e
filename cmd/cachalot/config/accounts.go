package config

import (
	"fmt"
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

// accounts checks what an upstream's accounts look like. key is the upstream's.
func (v *validator) accounts(u Upstream, key string) {
	beside := u.beside()
	if len(u.Accounts) > 0 {
		if keys := beside.given(); len(keys) > 0 {
			v.fail("given along with accounts; make it one of them, or remove them", join(key, keys[0]))
		}
	} else if beside != (Account{}) {
		v.account(beside, key)
	}
	for i, a := range u.Accounts {
		item := fmt.Sprintf("%s.accounts[%d]", key, i)
		switch {
		case v.below(item): // what is left of it would be judged wrongly
		case a == Account{}:
			v.fail("no account; write a username with password or password_file, or docker_config, or keychain", item)
		default:
			v.account(a, item)
		}
	}
}

// account checks one. key is what its keys stand below.
func (v *validator) account(a Account, key string) {
	given := a.given()
	for _, way := range []string{"docker_config", "keychain"} {
		if i := slices.Index(given, way); i > 0 {
			v.fail(fmt.Sprintf("given along with %s; keep one of the two", given[0]), join(key, way))
			return
		}
	}
	if a.Keychain != "" {
		if ways := []string{"ecr", "google", "azure"}; !slices.Contains(ways, a.Keychain) { // perhaps a secret in the wrong place
			v.fail("not known; write one of "+strings.Join(ways, ", "), join(key, "keychain"))
		}
	}

	username, password, file := join(key, "username"), join(key, "password"), join(key, "password_file")
	switch secret := a.Password != "" || a.PasswordFile != ""; {
	case a.Password != "" && a.PasswordFile != "":
		v.fail("given along with password; keep one of the two", file)
	case a.Username != "" && !secret && !v.done[password] && !v.done[file]:
		v.fail("given without a password; add password or password_file, or remove it", username)
	case a.Username == "" && secret:
		v.fail("missing beside the password; write the user it belongs to, or remove the password", username, password, file)
	}
	if strings.Contains(a.Username, ":") {
		v.fail("a colon in it; write the user name alone (RFC 7617 allows no colon there)", username)
	}
}
