package upstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-containerregistry/pkg/authn"
)

const (
	// acrScope is the same in all of Azure's clouds.
	acrScope = "https://containerregistry.azure.net/.default"
	// acrLife is the assumed life of a refresh token without an expiry; most live 3 hours.
	acrLife   = time.Hour
	acrEarly  = 5 * time.Minute
	azureHint = "give cachalot a workload or managed identity, or set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET"
)

// newAzure returns an asker that gets a token from Entra ID and exchanges it for one of the
// registry. The exchange is one request. It does not use the SDK's library
// (azcontainerregistry), which follows redirects with the token, reads a response of any
// length, and puts it into its errors.
func newAzure(registry string, base *url.URL, rt http.RoundTripper) (asker, error) {
	own := hosts(registry, base)
	i := slices.IndexFunc(own, func(h string) bool {
		return strings.HasSuffix(h, ".azurecr.io") || strings.HasSuffix(h, ".azurecr.cn") || strings.HasSuffix(h, ".azurecr.us")
	})
	if i < 0 {
		return nil, unfit(own, "azure", "NAME.azurecr.io")
	}
	service := own[i]
	return func(ctx context.Context) (granted, error) {
		entra, err := askEntra(ctx, service)
		if err != nil {
			return granted{}, fmt.Errorf("get a token of Entra ID: %w", err)
		}
		refresh, err := exchange(ctx, base, rt, service, entra)
		if err != nil {
			return granted{}, fmt.Errorf("exchange the token of Entra ID: %w", err)
		}
		return lasting(authn.AuthConfig{IdentityToken: refresh}, jwtExpiry(refresh), acrEarly), nil
	}, nil
}

func askEntra(ctx context.Context, service string) (string, error) {
	var options azidentity.DefaultAzureCredentialOptions
	switch {
	case strings.HasSuffix(service, ".cn"):
		options.Cloud = cloud.AzureChina
	case strings.HasSuffix(service, ".us"):
		options.Cloud = cloud.AzureGovernment
	}
	account, err := azidentity.NewDefaultAzureCredential(&options)
	if err != nil {
		return "", fmt.Errorf("%w; %s", errUntold, azureHint)
	}
	t, err := account.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{acrScope}})
	if err == nil {
		return t.Token, nil
	}
	if why := told(ctx, err); why != nil {
		return "", why
	}
	if failed, ok := errors.AsType[*azidentity.AuthenticationFailedError](err); ok && failed.RawResponse != nil && failed.RawResponse.Request != nil {
		answer := failed.RawResponse
		b, err := io.ReadAll(io.LimitReader(answer.Body, maxErrorBody)) // the library has read the body, and restored it
		if err != nil {
			b = nil // the status is enough
		}
		return "", refused(answer.Request.URL.Host, answer.StatusCode, b)
	}
	return "", fmt.Errorf("no account was found; %s", azureHint)
}

// exchange sends a token of Entra ID to the registry and returns its refresh token.
func exchange(ctx context.Context, base *url.URL, rt http.RoundTripper, service, entra string) (string, error) {
	form := url.Values{"grant_type": {"access_token"}, "service": {service}, "access_token": {entra}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base.JoinPath("oauth2", "exchange").String(), strings.NewReader(form.Encode()))
	if err != nil {
		return "", fmt.Errorf("make the request: %w", err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := rt.RoundTrip(req) // no redirect is followed: the token is for base alone
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		code, message := ociError(resp)
		text := strings.ReplaceAll(strings.TrimSpace(code+" "+message), entra, "[redacted]")
		return "", fmt.Errorf("%s answered %d %s", base.Host, resp.StatusCode, printable(text, 256))
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxTokenAnswer))
	if err != nil {
		return "", fmt.Errorf("read the answer of %s: %w", base.Host, err)
	}
	var wire struct {
		RefreshToken string `json:"refresh_token"`
	}
	if json.Unmarshal(b, &wire) != nil || wire.RefreshToken == "" || len(wire.RefreshToken) > maxToken {
		return "", fmt.Errorf("%s sent no refresh token", base.Host)
	}
	return wire.RefreshToken, nil
}

// jwtExpiry returns when t expires, at most maxTokenLife from now; acrLife from now if t
// does not say. t is not verified: a wrong expiry harms only the registry that issued it.
func jwtExpiry(t string) time.Time {
	var claims jwt.RegisteredClaims
	if _, _, err := jwt.NewParser().ParseUnverified(t, &claims); err != nil || claims.ExpiresAt == nil {
		return time.Now().Add(acrLife)
	}
	if most := time.Now().Add(maxTokenLife); claims.ExpiresAt.After(most) {
		return most
	}
	return claims.ExpiresAt.Time
}
