package s3

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/minio/minio-go/v7"

	"github.com/keboola/agnes-the-ai-analyst/agent/offsite"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func (t *Target) missing(err error) error {
	return offsite.Fault(offsite.CodeMissing, err, fmt.Sprintf("The bucket %s does not exist at %s", t.bucket, t.where),
		fmt.Sprintf("Make it (aws s3 mb s3://%s), or mend the name or the endpoint in AGNES_BACKUP_TARGET.", t.bucket))
}

func (t *Target) noObject(err error) error {
	return offsite.Fault(offsite.CodeNoObject, err, fmt.Sprintf("There is no such backup at %s", t.opt.URL), "See what is there: agnes backup list --target '"+t.opt.URL.String()+"'")
}

func (t *Target) taken(name string) error {
	return offsite.Fault(offsite.CodeExists, nil, fmt.Sprintf("%s is at %s already.", name, t.opt.URL), "Nothing has to be done: a backup appears there whole or not at all.")
}

// fault says what an error means. The codes are those of
// docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html and MinIO's.
func (t *Target) fault(err error, name string) error {
	_, known := errors.AsType[*problem.Error](err)
	if err == nil || known || errors.Is(err, context.Canceled) {
		return err
	}
	answer := minio.ToErrorResponse(err)
	switch answer.Code {
	case "NoSuchBucket", "InvalidBucketName":
		return t.missing(err)
	case "NoSuchKey":
		return t.noObject(err)
	case "PreconditionFailed":
		return t.taken(name)
	case "RequestTimeTooSkewed", "RequestExpired":
		return offsite.Fault(offsite.CodeClock, err, fmt.Sprintf("%s finds that this host's clock is wrong", t.where), "Set the clock (timedatectl set-ntp true), then try again.")
	case "QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "StorageFull", "InsufficientStorage", "QuotaExceededException":
		return offsite.Fault(offsite.CodeNoSpace, err, fmt.Sprintf("The bucket %s at %s is full", t.bucket, t.where), "Raise its quota, or keep fewer backups: AGNES_BACKUP_OFFSITE_KEEP")
	case "InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "ExpiredToken", "InvalidToken", "AccountProblem", "AllAccessDisabled", "InvalidSecurity":
		return offsite.Fault(offsite.CodeCredentials, err, fmt.Sprintf("%s refuses the key for the bucket %s (%s)", t.where, t.bucket, answer.Code),
			t.credentialsFrom()+"; the key needs s3:ListBucket, s3:GetObject, s3:PutObject, s3:AbortMultipartUpload and, for retention, s3:DeleteObject.")
	case "SlowDown", "SlowDownWrite", "SlowDownRead", "InternalError", "ServiceUnavailable", "RequestTimeout", "Throttling", "OperationAborted", "ConditionalRequestConflict", "BadDigest", "XAmzContentSHA256Mismatch", "InvalidDigest", "IncompleteBody":
		return t.unreachable(err)
	case "AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException":
		return offsite.Fault(offsite.CodeMissing, err, fmt.Sprintf("The bucket %s is in another region", t.bucket), "Say which: AGNES_BACKUP_TARGET=s3://BUCKET/PREFIX?region=REGION")
	}
	switch status := answer.StatusCode; {
	case status == http.StatusTooManyRequests, status == http.StatusRequestTimeout, status == http.StatusInsufficientStorage, status >= 500 && status != http.StatusNotImplemented:
		return t.unreachable(err)
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return offsite.Fault(offsite.CodeCredentials, err, fmt.Sprintf("%s refuses the key for the bucket %s", t.where, t.bucket), t.credentialsFrom()+".")
	case status == http.StatusNotFound:
		return t.noObject(err)
	case status >= 400:
		return offsite.Fault(offsite.CodeMissing, err, fmt.Sprintf("%s refuses what a backup needs (%s)", t.where, answer.Code), "Check endpoint and region in AGNES_BACKUP_TARGET.")
	}
	if _, tls := errors.AsType[x509.UnknownAuthorityError](err); tls {
		return offsite.Fault(offsite.CodeMissing, err, fmt.Sprintf("The certificate of %s is signed by nobody that this host knows", t.where), "Add its authority to the host's certificates, or set SSL_CERT_FILE to it.")
	}
	if strings.Contains(err.Error(), "HTTP response to HTTPS client") {
		return offsite.Fault(offsite.CodeMissing, err, fmt.Sprintf("%s speaks plain HTTP", t.where), "Say so in AGNES_BACKUP_TARGET: endpoint=http://"+t.where)
	}
	return t.unreachable(err)
}

func (t *Target) unreachable(err error) error {
	return offsite.Fault(offsite.CodeUnreachable, err, fmt.Sprintf("The S3 service at %s does not answer as it should", t.where), fmt.Sprintf("Try from this host: curl -sI https://%s", t.where))
}
