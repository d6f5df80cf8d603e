package upstream

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
)

// cloudServer plays a part of a cloud, on loopback.
type cloudServer struct {
	*httptest.Server

	mu     sync.Mutex // guards the fields below
	count  int
	answer func(w http.ResponseWriter, r *http.Request, form url.Values)
}

func newCloudServer(t *testing.T, answer func(w http.ResponseWriter, r *http.Request, form url.Values)) *cloudServer {
	t.Helper()
	s := &cloudServer{answer: answer}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		form, _ := url.ParseQuery(string(b)) // not every body is a form
		s.mu.Lock()
		s.count++
		answer := s.answer
		s.mu.Unlock()
		answer(w, r, form)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *cloudServer) will(answer func(w http.ResponseWriter, r *http.Request, form url.Values)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

func (s *cloudServer) wantCount(t *testing.T, n int) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.count != n {
		t.Errorf("%d requests, want %d", s.count, n)
	}
}

func respond(status int, contentType, body string) func(http.ResponseWriter, *http.Request, url.Values) {
	return func(w http.ResponseWriter, _ *http.Request, _ url.Values) {
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body) // the client may have gone
	}
}

// nowhere is a loopback address where no server listens.
const nowhere = "127.0.0.1:1"

// cloudless hides all cloud accounts of the machine, and sets the metadata server to nowhere.
func cloudless(t *testing.T) {
	t.Helper()
	for _, variable := range os.Environ() {
		name, value, _ := strings.Cut(variable, "=")
		for _, cloud := range []string{"AWS_", "AZURE_", "GOOGLE_", "GCE_", "IDENTITY_", "MSI_", "IMDS_", "CLOUDSDK_"} {
			if strings.HasPrefix(name, cloud) {
				t.Setenv(name, value) // restores it after the test
				if err := os.Unsetenv(name); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AWS_CONFIG_FILE", filepath.Join(home, "none"))
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(home, "none"))
	t.Setenv("GCE_METADATA_HOST", nowhere)
	t.Setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
}

// together gets the credential in many goroutines at once.
func together(t *testing.T, c credentials, want authn.AuthConfig) {
	t.Helper()
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() { wantGot(t, c, want) })
	}
	all.Wait()
}

// wantRenewal checks when the stored credential is renewed and expires.
func wantRenewal(t *testing.T, c credentials, expires time.Time, early time.Duration) {
	t.Helper()
	s := c.(*shared)
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.kept.expires.Sub(expires).Abs(); d > 2*time.Second {
		t.Errorf("it expires at %s, want %s", s.kept.expires, expires)
	}
	if d := s.kept.expires.Sub(s.kept.renew); d != early {
		t.Errorf("it is renewed %s before its end", d)
	}
}

// TestKeychainFits: a cloud account is used only for that cloud's registries.
func TestKeychainFits(t *testing.T) {
	t.Parallel()
	const mirror = "https://mirror.corp"
	for _, tc := range []struct {
		keychain, registry, base string
		fits                     bool
	}{
		{"ecr", "a", "https://123456789012.dkr.ecr.eu-west-1.amazonaws.com", true},
		{"ecr", "a", "https://123456789012.DKR.ecr-fips.us-gov-west-1.amazonaws.com.:443", true},
		{"ecr", "a", "https://123456789012.dkr-ecr.eu-west-1.on.aws", true},
		{"ecr", "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", mirror, true},
		{"ecr", "public.ecr.aws", mirror, true},
		{"ecr", "a", mirror, false},
		{"ecr", "gcr.io", "https://gcr.io", false},
		{"ecr", "a", "https://123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil.test", false},
		{"google", "a", "https://gcr.io", true},
		{"google", "a", "https://eu.gcr.io", true},
		{"google", "a", "https://europe-docker.pkg.dev", true},
		{"google", "GCR.io:443", mirror, true},
		{"google", "a", mirror, false},
		{"google", "a", "https://evilgcr.io", false},
		{"google", "a", "https://gcr.io.evil.test", false},
		{"google", "a", "https://pkg.dev.evil.test", false},
		{"azure", "a", "https://acme.azurecr.io", true},
		{"azure", "a", "https://acme.azurecr.cn", true},
		{"azure", "acme.azurecr.us", mirror, true},
		{"azure", "a", mirror, false},
		{"azure", "a", "https://azurecr.io.evil.test", false},
		{"azure", "docker.io", "https://registry-1.docker.io", false},
	} {
		_, err := trySource(t, Account{Keychain: tc.keychain}, tc.registry, tc.base, nil)
		if tc.fits != (err == nil) {
			t.Errorf("%s for %s at %s: %v", tc.keychain, tc.registry, tc.base, err)
		}
		if err != nil {
			u, _ := url.Parse(tc.base)
			wantTold(t, err, tc.keychain+" is for ", u.Hostname())
		}
	}
}

// TestKeychainEnded: get returns when its context ends, even if the cloud does not answer.
func TestKeychainEnded(t *testing.T) {
	for _, tc := range []struct{ keychain, registry string }{
		{"ecr", "123456789012.dkr.ecr.eu-west-1.amazonaws.com"},
		{"ecr", "public.ecr.aws"},
		{"google", "gcr.io"},
		{"azure", "acme.azurecr.io"},
	} {
		t.Run(tc.keychain+" "+tc.registry, func(t *testing.T) {
			cloudless(t)
			asked, release := make(chan struct{}, 1), make(chan struct{})
			cloud := newCloudServer(t, func(_ http.ResponseWriter, r *http.Request, _ url.Values) {
				asked <- struct{}{}
				select {
				case <-r.Context().Done():
				case <-release:
				}
			})
			defer close(release)
			t.Setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
			t.Setenv("AWS_SECRET_ACCESS_KEY", canary)
			t.Setenv("AWS_ENDPOINT_URL_ECR", cloud.URL)
			t.Setenv("AWS_ENDPOINT_URL_ECR_PUBLIC", cloud.URL)
			t.Setenv("GCE_METADATA_HOST", strings.TrimPrefix(cloud.URL, "http://"))
			t.Setenv("AZURE_TOKEN_CREDENTIALS", "ManagedIdentityCredential")
			t.Setenv("IDENTITY_ENDPOINT", cloud.URL)
			t.Setenv("IDENTITY_HEADER", canary)
			c, err := trySource(t, Account{Keychain: tc.keychain}, tc.registry, cloud.URL, once())
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				<-asked
				cancel()
			}()
			_, err = c.get(ctx)
			if !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
			wantTold(t, err)
			s := c.(*shared)
			s.mu.Lock()
			q := s.now
			s.mu.Unlock()
			if q != nil {
				<-q.done
			}
			if _, err := s.ask(ctx); !errors.Is(err, context.Canceled) { // the error of ask wraps it too
				t.Errorf("got %v", err)
			}
			cloud.wantCount(t, 1) // it was not asked again
		})
	}
}
