//go:build linux

package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/distribution/reference"

	"dhow/internal/errdefs"
)

// StatusError is a registry's answer that is not the one asked for.
type StatusError struct {
	Status     int
	Method     string
	URL        string
	Errors     []APIError    // of the body, if it is what the protocol says
	Body       string        // else its beginning
	RetryAfter time.Duration // 0: not said
}

// APIError is one error of a registry's answer.
type APIError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// Error returns the text of docker's registry client.
func (a APIError) Error() string {
	return strings.ToLower(strings.ReplaceAll(a.Code, "_", " ")) + ": " + a.Message
}

// Error returns the text of docker's registry client.
func (e *StatusError) Error() string {
	if len(e.Errors) > 0 {
		return e.Errors[0].Error()
	}
	if e.Status >= 400 && e.Status < 500 {
		return fmt.Sprintf("error parsing HTTP %d response body: %q", e.Status, e.Body)
	}
	return fmt.Sprintf("received unexpected HTTP status: %d %s", e.Status, http.StatusText(e.Status))
}

// has reports whether the first error has the code.
func (e *StatusError) has(code string) bool { return len(e.Errors) > 0 && e.Errors[0].Code == code }

// statusError reads a response that is an error, and closes it.
func statusError(resp *http.Response) error {
	defer closeBody(resp)
	e := &StatusError{Status: resp.StatusCode}
	if resp.Request != nil {
		e.Method, e.URL = resp.Request.Method, resp.Request.URL.Redacted()
	}
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
		e.RetryAfter = time.Duration(min(s, 3600)) * time.Second
	}
	raw, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // what there is
	var body struct {
		Errors  []APIError `json:"errors"`
		Details string     `json:"details"`
	}
	if json.Unmarshal(raw, &body) == nil {
		e.Errors = body.Errors
	}
	for i := range e.Errors {
		if e.Errors[i].Message == "" {
			e.Errors[i].Message = strings.ToLower(strings.ReplaceAll(e.Errors[i].Code, "_", " "))
		}
	}
	if len(e.Errors) == 0 {
		e.Body = string(raw[:min(len(raw), 256)])
		or := func(text string) string { // a token server says it in "details"
			if body.Details != "" {
				return body.Details
			}
			return text
		}
		switch e.Status {
		case http.StatusTooManyRequests:
			e.Errors = []APIError{{"TOOMANYREQUESTS", or("too many requests")}}
		case http.StatusUnauthorized:
			e.Errors = []APIError{{"UNAUTHORIZED", or("authentication required")}}
		case http.StatusForbidden:
			e.Errors = []APIError{{"DENIED", "requested access to the resource is denied"}}
		}
	}
	if e.Status == http.StatusUnauthorized && parseChallenge(resp.Header.Values("WWW-Authenticate")).params["error"] == "insufficient_scope" {
		e.Errors = []APIError{{"DENIED", "requested access to the resource is denied"}}
	}
	return e
}

// errStalled is why a body is given up that sends nothing.
var errStalled = errors.New("the registry stopped sending data")

// temporary reports whether another attempt can succeed.
func temporary(err error) bool {
	if _, ok := errors.AsType[unreachable](err); ok {
		return false
	}
	var s *StatusError
	if errors.As(err, &s) {
		return s.Status >= 500 && s.Status != http.StatusNotImplemented || s.Status == http.StatusTooManyRequests || s.Status == http.StatusRequestTimeout
	}
	var (
		dns     *net.DNSError
		op      *net.OpError
		verify  *tls.CertificateVerificationError
		unknown x509.UnknownAuthorityError
		record  tls.RecordHeaderError
		alert   tls.AlertError
	)
	switch {
	case errors.Is(err, context.Canceled), errdefs.Is(err, errdefs.Invalid), errdefs.Is(err, errdefs.NotFound):
		return false
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return false
	case errors.As(err, &dns):
		return dns.IsTemporary && !dns.IsTimeout
	case errors.As(err, &verify), errors.As(err, &unknown), errors.As(err, &record), errors.As(err, &alert), errors.Is(err, errNoBasic):
		return false
	case errors.As(err, &op) && op.Op == "dial":
		return false
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return false // net/http has no value for it
	}
	var u *url.Error
	return errors.As(err, &u) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || errors.Is(err, errStalled) ||
		errors.As(err, &op) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, context.DeadlineExceeded)
}

// Explain gives an error of this package the class and the sentence that
// docker has for it, when ref was to be pulled.
func Explain(err error, ref reference.Named) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	var already *errdefs.Error
	if errors.As(err, &already) {
		return err
	}
	var s *StatusError
	if errors.As(err, &s) {
		switch {
		case s.has("DENIED"):
			return errdefs.Wrap(errdefs.NotFound, err, "pull access denied for %s, repository does not exist or may require 'docker login': %s", reference.FamiliarName(ref), s)
		case s.has("MANIFEST_UNKNOWN"):
			return errdefs.Wrap(errdefs.NotFound, err, "manifest for %s not found: %s", reference.FamiliarString(ref), s)
		case s.has("NAME_UNKNOWN"):
			return errdefs.Wrap(errdefs.NotFound, err, "repository %s not found: %s", reference.FamiliarName(ref), s)
		case s.has("BLOB_UNKNOWN"):
			return errdefs.Wrap(errdefs.NotFound, err, "unknown blob")
		case s.Status == http.StatusUnauthorized:
			return errdefs.Wrap(errdefs.Denied, err, "Get %q: %s", s.URL, s)
		}
		return errdefs.Wrap(errdefs.Unavailable, err, "%s", s)
	}
	if errors.Is(err, errNoBasic) {
		return errdefs.Wrap(errdefs.Denied, err, "%s", err)
	}
	return errdefs.Wrap(errdefs.Unavailable, err, "%s", err)
}
