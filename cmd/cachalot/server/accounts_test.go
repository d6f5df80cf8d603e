package server

import (
	"net/http"
	"strings"
	"testing"

	"github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// Each account is used. Its password is in no log and no response, also after a failure.
func TestAccountsServe(t *testing.T) {
	t.Parallel()
	const first, second = "canary-first", "canary-second"
	up := upstreamtest.New(t, upstreamtest.Options{Auth: upstreamtest.Bearer, Accounts: map[string]string{"ben": second}})
	up.AddImage("library/app", "latest", upstreamtest.NewImage(1, 1000))
	r := start(t, "log: {level: debug}\nupstreams:\n  docker.io:\n    url: "+up.URL+"\n    accounts:\n"+
		"    - {username: ann, password: "+first+"}\n    - {username: ben, password: "+second+"}\n")
	status, answer := r.read(t, r.url+"/v2/library/app/manifests/latest")
	if status != http.StatusOK {
		t.Errorf("%d %s", status, answer)
	}
	r.log.wait(t, `msg="account refused" upstream=docker.io account=\S*accounts\[0\]`)

	up.SetCredential("cleo", "changed")
	status, answer = r.read(t, r.url+"/v2/library/none/manifests/latest")
	if status != http.StatusNotFound {
		t.Errorf("%d %s", status, answer)
	}
	log, _ := r.log.now()
	for _, canary := range []string{first, second} {
		if strings.Contains(log+answer, canary) {
			t.Errorf("%s is in\n%s\n%s", canary, log, answer)
		}
	}
}
