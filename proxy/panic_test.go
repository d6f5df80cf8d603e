package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/cachalot-registry/cachalot/storage"
	"github.com/cachalot-registry/cachalot/task"
	"github.com/cachalot-registry/cachalot/upstream"
	ut "github.com/cachalot-registry/cachalot/upstream/upstreamtest"
)

// TestPanic_Handler: a request that panics gets a response, and other requests continue.
func TestPanic_Handler(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	img := up.AddImage("library/app", "latest", ut.NewImage(1, 10))
	m := newMirror(t, func(c *Config) {
		c.Unlisted = func(string) (*upstream.Registry, error) { panic("a secret") }
	}, registry(t, "docker.io", up.URL))
	for range 2 {
		a := m.get("/v2/library/app/manifests/latest?ns=registry.example")
		if a.status != http.StatusInternalServerError || a.code() != "UNKNOWN" {
			t.Errorf("got %d %s, %v", a.status, a.body, a.err)
		}
		var told struct{ Errors []struct{ Detail string } }
		if err := json.Unmarshal(a.body, &told); err != nil || len(told.Errors) != 1 || told.Errors[0].Detail[:28] != "request: internal error; the" {
			t.Errorf("told %s", a.body)
		}
	}
	m.want(m.get("/v2/library/app/manifests/latest"), img.Index)
	if n := m.metrics.inFlight.Load(); n != 0 {
		t.Errorf("%d requests are in flight", n)
	}
}

// TestPanic_Once: a check that panics fails, and the next check runs.
func TestPanic_Once(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	_, err := once(t.Context(), m.proxy.checks, question{op: "a question"}, func(context.Context) (int, error) { panic("a bug in what asks") })
	if _, ok := errors.AsType[*task.PanicError](err); !ok {
		t.Errorf("got %v", err)
	}
	if n, err := once(t.Context(), m.proxy.checks, question{op: "a question"}, func(context.Context) (int, error) { return 1, nil }); n != 1 || err != nil {
		t.Errorf("the next one: %d, %v", n, err)
	}
}

// TestReferrers_OddStoredList: a list that an older version stored is filtered, whatever it contains.
func TestReferrers_OddStoredList(t *testing.T) {
	t.Parallel()
	up := ut.New(t, ut.Options{})
	img := up.AddImage("library/app", "latest", ut.NewImage(1, 10))
	m := newMirror(t, nil, registry(t, "docker.io", up.URL))
	for _, kept := range []string{`null`, `{}`, `{"manifests":null}`, `{"manifests":[]}`, `{"manifests":[null,{}]}`} {
		sc := storage.Scope{Upstream: "docker.io", Repository: "library/app"}
		d, err := m.proxy.keep(t.Context(), sc, upstream.Resolved{Content: []byte(kept)})
		if err != nil {
			t.Fatal(err)
		}
		key := storage.TagKey{Upstream: sc.Upstream, Repository: sc.Repository, Name: "referrers/" + string(img.Index.Digest)}
		if err := m.store.PutTag(key, storage.Tag{Digest: d, Checked: time.Now()}, time.Hour); err != nil {
			t.Fatal(err)
		}
		a := m.get("/v2/library/app/referrers/" + string(img.Index.Digest) + "?artifactType=a/b")
		if a.status != http.StatusOK || string(a.body) != `{"manifests":[]}` {
			t.Errorf("%s: %d %s", kept, a.status, a.body)
		}
	}
}
