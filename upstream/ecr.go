package upstream

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/ecr"
	"github.com/aws/aws-sdk-go-v2/service/ecrpublic"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/logging"
	"github.com/awslabs/amazon-ecr-credential-helper/ecr-login/api"
	"github.com/google/go-containerregistry/pkg/authn"
)

const (
	// ecrEarly is how long before its expiry a password is renewed; most live 12 hours.
	ecrEarly = time.Hour
	// ecrPublicRegion is the only region that issues passwords for public.ecr.aws.
	ecrPublicRegion = "us-east-1"
	awsHint         = "give cachalot a role (EKS, ECS, EC2), or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
)

// newECR returns an asker that gets a password from AWS. Of Amazon's own credential helper
// only the pattern of the registries' names is used: its client panics on a configuration
// that it cannot read, takes no context and stores passwords on disk.
func newECR(registry string, base *url.URL, _ http.RoundTripper) (asker, error) {
	own := hosts(registry, base)
	for _, host := range own {
		if r, err := api.ExtractRegistry(host); err == nil {
			return func(ctx context.Context) (granted, error) { return askECR(ctx, r) }, nil
		}
	}
	return nil, unfit(own, "ecr", "ACCOUNT.dkr.ecr.REGION.amazonaws.com and public.ecr.aws")
}

// askECR reads AWS's configuration each time, so that a change takes effect.
func askECR(ctx context.Context, r *api.Registry) (granted, error) {
	options := []func(*config.LoadOptions) error{
		config.WithLogger(logging.Nop{}),
		config.WithHTTPClient(awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) { t.DisableKeepAlives = true })),
		config.WithRegion(r.Region),
	}
	if r.Service == api.ServiceECRPublic {
		options = append(options, config.WithRegion(ecrPublicRegion))
	}
	if r.FIPS {
		options = append(options, config.WithUseFIPSEndpoint(aws.FIPSEndpointStateEnabled))
	}
	cfg, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return granted{}, fmt.Errorf("read the AWS configuration: %w", awsCause(ctx, err))
	}
	keys, err := cfg.Credentials.Retrieve(ctx) // cached in cfg for the request
	if err != nil {
		return granted{}, fmt.Errorf("find AWS credentials: %w; %s", awsCause(ctx, err), awsHint)
	}
	token, expires, err := ecrToken(ctx, cfg, r.Service)
	if err != nil {
		return granted{}, fmt.Errorf("ask ECR for a password: %w", awsCause(ctx, err, keys.SecretAccessKey, keys.SessionToken))
	}
	userPassword, err := base64.StdEncoding.DecodeString(token)
	user, password, ok := strings.Cut(string(userPassword), ":")
	if err != nil || !ok || user == "" || password == "" {
		return granted{}, errors.New("ask ECR for a password: the answer has none")
	}
	return lasting(authn.AuthConfig{Username: user, Password: password}, expires, ecrEarly), nil
}

// ecrToken gets the base64 of user:password. It is valid for every registry that
// the role may read.
func ecrToken(ctx context.Context, cfg aws.Config, service api.Service) (token string, expires time.Time, err error) {
	if service == api.ServiceECRPublic {
		out, err := ecrpublic.NewFromConfig(cfg).GetAuthorizationToken(ctx, nil)
		if err != nil || out.AuthorizationData == nil {
			return "", time.Time{}, err
		}
		return aws.ToString(out.AuthorizationData.AuthorizationToken), aws.ToTime(out.AuthorizationData.ExpiresAt), nil
	}
	out, err := ecr.NewFromConfig(cfg).GetAuthorizationToken(ctx, nil)
	if err != nil || len(out.AuthorizationData) == 0 {
		return "", time.Time{}, err
	}
	return aws.ToString(out.AuthorizationData[0].AuthorizationToken), aws.ToTime(out.AuthorizationData[0].ExpiresAt), nil
}

// awsCause returns the part of err that may be shown. If the secrets are known, that
// includes the first line of AWS's message, which says which identity lacks which
// permission. After a wrong signature the other lines repeat the request.
func awsCause(ctx context.Context, err error, secrets ...string) error {
	if refused, ok := errors.AsType[smithy.APIError](err); ok {
		text := refused.ErrorCode()
		if line, _, _ := strings.Cut(refused.ErrorMessage(), "\n"); len(secrets) > 0 && line != "" {
			text += ": " + line
		}
		for _, s := range secrets {
			if s != "" {
				text = strings.ReplaceAll(text, s, "[redacted]")
			}
		}
		return errors.New(printable(text, 300))
	}
	if missing, ok := errors.AsType[config.SharedConfigProfileNotExistError](err); ok {
		return missing
	}
	if why := told(ctx, err); why != nil {
		return why
	}
	return errUntold
}
