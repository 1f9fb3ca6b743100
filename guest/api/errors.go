//go:build linux

package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"dhow/internal/errdefs"

	"github.com/moby/moby/api/types/common"
)

// statusError is an error with a status of its own, where docker's differs
// from what the error's class gives.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string { return e.err.Error() }
func (e *statusError) Unwrap() error { return e.err }

func withStatus(status int, err error) error { return &statusError{status, err} }

// errNoPage answers a path or a method that no route has.
var errNoPage = withStatus(http.StatusNotFound, errdefs.New(errdefs.NotFound, "page not found"))

// inBandError is an error that the client was already told, or cannot be told
// any more: it is only logged.
type inBandError struct{ error }

func (e inBandError) Unwrap() error { return e.error }

func inBand(err error) error {
	if err == nil {
		return nil
	}
	return inBandError{err}
}

// statusOf maps an error to its HTTP status.
func statusOf(err error) int {
	var se *statusError
	if errors.As(err, &se) {
		return se.status
	}
	return errdefs.HTTPStatus(errdefs.ClassOf(err))
}

// answerError ends a call with err: as its status and sentence if nothing was
// sent yet, else only in the log.
func (c *call) answerError(err error) {
	gone := c.r.Context().Err() != nil || errors.Is(err, context.Canceled)
	var in inBandError
	if c.started || errors.As(err, &in) {
		if !gone {
			c.log.Debug("request ended early", "method", c.r.Method, "path", c.r.URL.Path, "err", err)
		}
		return
	}
	if statusOf(err) == http.StatusInternalServerError {
		c.log.Error("request failed", "method", c.r.Method, "path", c.r.URL.Path, "err", err)
	}
	c.fail(err)
}

// fail writes err as an answer.
func (c *call) fail(err error) {
	code := statusOf(err)
	if code == http.StatusNotModified { // has no body
		c.status(code)
		return
	}
	h := c.w.Header()
	h.Set("Content-Type", "application/json")
	h.Del("Content-Length")
	b, jerr := json.Marshal(common.ErrorResponse{Message: errdefs.Sentence(err)})
	if jerr != nil { // a string always marshals
		b = []byte(`{"message":""}`)
	}
	c.status(code)
	_, _ = c.w.Write(append(b, '\n')) // the client may be gone; there is nobody else to tell
}
