package upstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"cloud.google.com/go/compute/metadata"
	"github.com/google/go-containerregistry/pkg/authn"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google"
)

const (
	googleUser  = "oauth2accesstoken"
	googleScope = "https://www.googleapis.com/auth/cloud-platform"
	// googleEarly: the metadata server issues a new token at the earliest 4 minutes
	// before the last one expires.
	googleEarly = 225 * time.Second
	googleHint  = "give cachalot a service account (GKE, Cloud Run, Compute Engine), or the path of a key file in GOOGLE_APPLICATION_CREDENTIALS"
)

func newGoogle(registry string, base *url.URL, _ http.RoundTripper) (asker, error) {
	own := hosts(registry, base)
	if !slices.ContainsFunc(own, func(h string) bool {
		return h == "gcr.io" || strings.HasSuffix(h, ".gcr.io") || strings.HasSuffix(h, ".pkg.dev")
	}) {
		return nil, unfit(own, "google", "gcr.io and REGION-docker.pkg.dev")
	}
	return askGoogle, nil
}

// askGoogle finds the application default credentials each time, so that a changed file
// takes effect. The oauth2 package is not used for the metadata server: it caches one
// missing answer until the process ends, and ignores ctx.
func askGoogle(ctx context.Context) (granted, error) {
	file, err := googleFile()
	var t *oauth2.Token
	switch {
	case err != nil:
	case file != "":
		t, err = googleFileToken(ctx, file)
	default:
		t, err = googleMetadataToken(ctx)
	}
	if err != nil {
		return granted{}, err
	}
	return lasting(authn.AuthConfig{Username: googleUser, Password: t.AccessToken}, t.Expiry, googleEarly), nil
}

// googleFile returns the credentials file that google.FindDefaultCredentials uses, "" if
// there is none.
func googleFile() (string, error) {
	file := os.Getenv("GOOGLE_APPLICATION_CREDENTIALS")
	if file != "" {
		_, err := os.Stat(file)
		if err != nil {
			err = fmt.Errorf("find GOOGLE_APPLICATION_CREDENTIALS: %w", err)
		}
		return file, err
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", nil //nolint:nilerr // without a home directory there is no file
	}
	file = filepath.Join(home, ".config", "gcloud", "application_default_credentials.json")
	if _, err := os.Stat(file); err != nil {
		return "", nil //nolint:nilerr // the library looks elsewhere too if it cannot be read
	}
	return file, nil
}

func googleFileToken(ctx context.Context, file string) (*oauth2.Token, error) {
	failed := func(why error) (*oauth2.Token, error) {
		return nil, fmt.Errorf("get a Google token with %s: %w", file, why)
	}
	server := &noting{under: once()}
	ctx = context.WithValue(ctx, oauth2.HTTPClient, &http.Client{Transport: server})
	found, err := google.FindDefaultCredentials(ctx, googleScope)
	if err != nil {
		return failed(errors.New("not a usable credentials file"))
	}
	t, err := found.TokenSource.Token()
	if err == nil {
		return t, nil
	}
	if why := told(ctx, err); why != nil {
		return failed(why)
	}
	if answer, ok := errors.AsType[*oauth2.RetrieveError](err); ok && server.host != "" {
		return failed(refused(server.host, answer.Response.StatusCode, answer.Body))
	}
	if server.failed != nil {
		return failed(fmt.Errorf("ask %s: %w", server.host, server.failed))
	}
	return failed(errUntold)
}

// noting records the host and the error of the last request. The oauth2 package's own error
// also quotes the server. Its requests are sent one by one.
type noting struct {
	under  http.RoundTripper
	host   string
	failed error
}

func (n *noting) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := n.under.RoundTrip(req)
	n.host, n.failed = req.URL.Host, err
	return resp, err
}

func googleMetadataToken(ctx context.Context) (*oauth2.Token, error) {
	failed := func(why error) (*oauth2.Token, error) {
		return nil, fmt.Errorf("get a Google token of the metadata server: %w; %s", why, googleHint)
	}
	direct := once()
	direct.Proxy = nil // it is on this machine
	text, err := metadata.NewClient(&http.Client{Transport: direct}).
		GetWithContext(ctx, "instance/service-accounts/default/token?"+url.Values{"scopes": {googleScope}}.Encode())
	if _, ok := errors.AsType[metadata.NotDefinedError](err); ok {
		return failed(errors.New("no service account"))
	}
	if answer, ok := errors.AsType[*metadata.Error](err); ok {
		return failed(fmt.Errorf("it answered %d", answer.Code))
	}
	if err != nil {
		if err = told(ctx, err); err == nil {
			err = errUntold
		}
		return failed(err)
	}
	t, err := googleToken([]byte(text))
	if err != nil {
		return failed(err)
	}
	return t, nil
}

// googleToken reads a token from the metadata server's response.
func googleToken(b []byte) (*oauth2.Token, error) {
	var wire struct {
		AccessToken string `json:"access_token"`
		ExpiresIn   int64  `json:"expires_in"`
	}
	if json.Unmarshal(b, &wire) != nil || wire.AccessToken == "" {
		return nil, errors.New("the answer has no token")
	}
	life := min(max(wire.ExpiresIn, 0), int64(maxTokenLife/time.Second))
	return &oauth2.Token{AccessToken: wire.AccessToken, Expiry: time.Now().Add(time.Duration(life) * time.Second)}, nil
}
