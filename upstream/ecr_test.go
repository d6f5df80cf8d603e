package upstream

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
)

const ecrName = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"

func ecrAnswer(public bool, userPassword string, expires time.Time) string {
	data := fmt.Sprintf(`{"authorizationToken": %q, "expiresAt": %d}`, base64.StdEncoding.EncodeToString([]byte(userPassword)), expires.Unix())
	if !public {
		data = "[" + data + "]"
	}
	return `{"authorizationData": ` + data + `}`
}

// newECRServer also sets AWS keys for cachalot.
func newECRServer(t *testing.T, answer func(http.ResponseWriter, *http.Request, url.Values)) *cloudServer {
	t.Helper()
	cloudless(t)
	aws := newCloudServer(t, answer)
	t.Setenv("AWS_ENDPOINT_URL_ECR", aws.URL)
	t.Setenv("AWS_ENDPOINT_URL_ECR_PUBLIC", aws.URL)
	t.Setenv("AWS_ENDPOINT_URL_STS", aws.URL)
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
	t.Setenv("AWS_SECRET_ACCESS_KEY", canary)
	return aws
}

func ecrSource(t *testing.T, registry string) credentials {
	t.Helper()
	c, err := trySource(t, Account{Keychain: "ecr"}, registry, "https://mirror.test", nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const amzJSON = "application/x-amz-json-1.1"

func TestKeychainECR(t *testing.T) {
	for _, tc := range []struct{ registry, target, scope string }{
		{ecrName, "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken", "/eu-west-1/ecr/aws4_request"},
		{"123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken", "/cn-north-1/ecr/aws4_request"},
		{"public.ecr.aws", "SpencerFrontendService.GetAuthorizationToken", "/us-east-1/ecr-public/aws4_request"},
	} {
		t.Run(tc.registry, func(t *testing.T) {
			public := tc.registry == "public.ecr.aws"
			expires := time.Now().Add(12 * time.Hour)
			aws := newECRServer(t, func(w http.ResponseWriter, r *http.Request, form url.Values) {
				if got := r.Header.Get("X-Amz-Target"); got != tc.target {
					t.Errorf("asked for %s", got)
				}
				if got := r.Header.Get("Authorization"); !strings.Contains(got, "AKIDEXAMPLE/") || !strings.Contains(got, tc.scope) {
					t.Errorf("signed as %s", got)
				}
				respond(200, amzJSON, ecrAnswer(public, "AWS:a:b", expires))(w, r, form)
			})
			t.Setenv("AWS_REGION", "ap-south-1") // the registry's region is used
			c := ecrSource(t, tc.registry)
			aws.wantCount(t, 0)
			together(t, c, authn.AuthConfig{Username: "AWS", Password: "a:b"})
			together(t, c, authn.AuthConfig{Username: "AWS", Password: "a:b"})
			aws.wantCount(t, 1)
			wantRenewal(t, c, expires, time.Hour)
		})
	}
}

// TestKeychainECR_ChangedKeys: changed keys are used for the next request.
func TestKeychainECR_ChangedKeys(t *testing.T) {
	var signed string
	aws := newECRServer(t, func(w http.ResponseWriter, r *http.Request, form url.Values) {
		signed = r.Header.Get("Authorization")
		respond(200, amzJSON, ecrAnswer(false, "AWS:a", time.Now().Add(-time.Minute)))(w, r, form)
	})
	c := ecrSource(t, ecrName)
	wantGot(t, c, authn.AuthConfig{Username: "AWS", Password: "a"})
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIDANOTHER")
	wantGot(t, c, authn.AuthConfig{Username: "AWS", Password: "a"})
	aws.wantCount(t, 2)
	if !strings.Contains(signed, "AKIDANOTHER/") {
		t.Errorf("signed as %s", signed)
	}
}

// TestKeychainECRFIPS: for a FIPS registry, the SDK refuses the test's endpoint, because it is
// not a FIPS endpoint.
func TestKeychainECRFIPS(t *testing.T) {
	aws := newECRServer(t, respond(200, amzJSON, ecrAnswer(false, "AWS:a", time.Now().Add(time.Hour))))
	wantFailed(t, ecrSource(t, "123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com"), "ask ECR for a password: ")
	aws.wantCount(t, 0)
}

func TestKeychainECRFails(t *testing.T) {
	refusal := func(code, message string) string { return fmt.Sprintf(`{"__type": %q, "message": %q}`, code, message) }
	for _, tc := range []struct {
		name   string
		status int
		answer string
		want   string
	}{
		{
			"denied", 400, refusal("AccessDeniedException", "User: arn:aws:iam::1:user/a is not authorized to perform: ecr:GetAuthorizationToken"),
			"ask ECR for a password: AccessDeniedException: User: arn:aws:iam::1:user/a is not authorized to perform: ecr:GetAuthorizationToken",
		},
		{"with the secret key", 400, refusal("InvalidSignatureException", "you sent key-"+canary), "InvalidSignatureException: you sent [redacted]"},
		{"with the session", 400, refusal("InvalidSignatureException", "you sent session-"+canary), "InvalidSignatureException: you sent [redacted]"},
		{
			"with the request", 400, refusal("InvalidSignatureException", "No match.\n\nThe Canonical String should have been\nx-amz-security-token:session-"+canary),
			"ask ECR for a password: InvalidSignatureException: No match.",
		},
		{"with no data", 200, `{"authorizationData": []}`, "the answer has none"},
		{"with nothing", 200, `{}`, "the answer has none"},
		{"with no base64", 200, `{"authorizationData": [{"authorizationToken": "` + canary + `"}]}`, "the answer has none"},
		{"with no colon", 200, ecrAnswer(false, canary, time.Now()), "the answer has none"},
		{"with no user", 200, ecrAnswer(false, ":"+canary, time.Now()), "the answer has none"},
		{"with no password", 200, ecrAnswer(false, "AWS:", time.Now()), "the answer has none"},
		{"with no JSON", 200, canary, "ask ECR for a password: "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			newECRServer(t, respond(tc.status, amzJSON, tc.answer))
			t.Setenv("AWS_SECRET_ACCESS_KEY", "key-"+canary)
			t.Setenv("AWS_SESSION_TOKEN", "session-"+canary)
			t.Setenv("AWS_MAX_ATTEMPTS", "1")
			c := ecrSource(t, ecrName)
			wantFailed(t, c, tc.want)
			if _, err := c.get(t.Context()); strings.Contains(err.Error(), "Canonical") {
				t.Errorf("the request is in %q", err)
			}
		})
	}
}

// TestKeychainECRAccount: errors before the request to ECR.
func TestKeychainECRAccount(t *testing.T) {
	role := map[string]string{"AWS_ROLE_ARN": "arn:aws:iam::1:role/a"}
	for _, tc := range []struct {
		name  string
		env   map[string]string
		file  [2]string // a variable, and the content of the file that it names
		want  []string
		count int
	}{
		{name: "none", want: []string{"find AWS credentials: ", "AWS_ACCESS_KEY_ID"}},
		{
			name: "a role's credentials that nobody serves",
			env:  map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://" + nowhere + "/" + canary, "AWS_MAX_ATTEMPTS": "1"},
			want: []string{"find AWS credentials: ask " + nowhere + ": dial tcp", "connection refused"},
		},
		{
			name: "a token that STS does not take", env: role, file: [2]string{"AWS_WEB_IDENTITY_TOKEN_FILE", canary},
			want: []string{"find AWS credentials: ExpiredTokenException; "}, count: 1,
		},
		{
			name: "a program that writes no credential", file: [2]string{"AWS_CONFIG_FILE", "[default]\ncredential_process = echo " + canary + "\n"},
			want: []string{"find AWS credentials: ", errUntold.Error()},
		},
		{name: "a broken configuration", file: [2]string{"AWS_CONFIG_FILE", "[default\n" + canary}, want: []string{"AWS"}},
		{
			name: "a profile that is not there", env: map[string]string{"AWS_PROFILE": "none"},
			want: []string{"read the AWS configuration: failed to get shared config profile, none"},
		},
		{
			name: "certificates that are not there", env: map[string]string{"AWS_CA_BUNDLE": "/no/such"},
			want: []string{"read the AWS configuration: open /no/such"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			aws := newECRServer(t, respond(400, "text/xml", `<ErrorResponse><Error><Code>ExpiredTokenException</Code><Message>`+canary+` has expired</Message></Error></ErrorResponse>`))
			t.Setenv("AWS_ACCESS_KEY_ID", "")
			t.Setenv("AWS_SECRET_ACCESS_KEY", "")
			for k, v := range tc.env {
				t.Setenv(k, v)
			}
			if tc.file[0] != "" {
				t.Setenv(tc.file[0], write(t, filepath.Join(t.TempDir(), "file"), tc.file[1]))
			}
			wantFailed(t, ecrSource(t, ecrName), tc.want...)
			aws.wantCount(t, tc.count)
		})
	}
}
