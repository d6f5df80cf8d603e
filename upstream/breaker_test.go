package upstream

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
)

// TestBreakers_OneBadObject: an object or a repository that keeps failing does not block the
// others (L4).
func TestBreakers_OneBadObject(t *testing.T) {
	t.Parallel()
	bad := func(name string) func(path string) bool {
		return func(path string) bool { return strings.Contains(path, name) }
	}
	for name, fails := range map[string]func(path string) bool{
		"one blob":       bad("/sick/blobs/" + digest.FromString("0").String()),
		"one repository": bad("/sick/"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				o := newOdd(func(w http.ResponseWriter, req *http.Request) bool {
					if fails(req.URL.Path) {
						w.WriteHeader(http.StatusInternalServerError)
						return true
					}
					return false
				})
				r := served(t, o.ServeHTTP)
				open := func(repo string, n int) error {
					c, err := r.Open(t.Context(), KindBlob, repo, digest.FromString(fmt.Sprint(n)), Span{})
					if err == nil {
						err = c.Body.Close()
					}
					return err
				}
				for i := range 20 {
					for n := range 1 + i%7 {
						if err := open("a/sick", 0); !errors.Is(err, ErrUnavailable) {
							t.Errorf("sick: %v", err)
						}
						if name == "one repository" {
							_ = open("a/sick", n)
						}
					}
					for n := range 5 {
						if err := open("a/well", n); err != nil {
							t.Errorf("beside a sick one: %v", err)
						}
					}
					time.Sleep(time.Second)
				}
				if name == "one blob" {
					if err := open("a/sick", 1); err != nil {
						t.Errorf("in its repository: %v", err)
					}
				}
				if !r.endpoints[0].up() {
					t.Error("the registry is taken for down")
				}
			})
		})
	}
}
