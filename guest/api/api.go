//go:build linux

package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"runtime/debug"
	"time"

	"dhow/internal/errdefs"
)

// MaxBody is the most bytes of a JSON request body; a longer one is refused
// with status 413. Image archives are not bounded: they are streamed.
const MaxBody = 4 << 20

// readHeaderTimeout is how long a client may take to send a request's header.
const readHeaderTimeout = 30 * time.Second

// Options are what the API needs beside its backends. Version is the engine's
// own version, e.g. "1.0.0"; it appears in the Server header. Refuse, where it
// is not nil, answers every request but ping and version, of which only
// Backends.System's Version is called: the engine cannot work, and says why.
type Options struct {
	Log     *slog.Logger
	Version string
	Refuse  error
}

// Backends are the engine's parts that the API calls.
type Backends struct {
	Containers Containers
	Execs      Execs
	Images     Images
	Networks   Networks
	System     System
}

// server is the handler: routes and what they need.
type server struct {
	Backends
	log    *slog.Logger
	name   string // of the Server header
	refuse error  // see Options
	routes *router
}

// New returns the handler of the whole API. It does no I/O and starts nothing.
func New(b Backends, o Options) http.Handler {
	log := o.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &server{Backends: b, log: log, name: "Docker/" + o.Version + " (linux)", refuse: o.Refuse, routes: newRouter(table)}
}

// NewServer returns an HTTP server for h, a handler made by New, whose clients
// cannot hold a connection by sending a header slowly. The caller serves its
// listeners with it and shuts it down. Listeners' connections should have
// CloseWrite and SyscallConn, as *net.UnixConn does: an attach needs the first
// to end cleanly and the second to see that its client is gone.
func NewServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: readHeaderTimeout,
		MaxHeaderBytes:    1 << 20,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// call is one request on its way through a handler.
type call struct {
	w       http.ResponseWriter
	r       *http.Request
	version version
	name    string     // what the route's {name} matched
	query   url.Values // of the URL
	started bool       // the status line is on its way: errors can only go in-band
	log     *slog.Logger
}

func (c *call) ctx() context.Context { return c.r.Context() }

// ServeHTTP implements http.Handler.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := &call{w: w, r: r, log: s.log}
	debugging := s.log.Enabled(r.Context(), slog.LevelDebug)
	var begun time.Time
	if debugging {
		begun = time.Now()
	}
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
			panic(p)
		}
		s.log.Error("request panicked", "method", r.Method, "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
		if c.started {
			panic(http.ErrAbortHandler) // the client must not take half an answer for a whole one
		}
		c.fail(errdefs.New(errdefs.Internal, "the engine failed while it handled the request; its log has the details"))
	}()
	h := w.Header()
	h.Set("Server", s.name)
	h.Set("Api-Version", Version)
	h.Set("Docker-Experimental", "false")
	h.Set("Ostype", "linux")

	err := s.serve(c)
	if err != nil {
		c.answerError(err)
	}
	if debugging {
		s.log.Debug("request", "method", r.Method, "path", r.URL.Path, "took", time.Since(begun), "err", err)
	}
}

func (s *server) serve(c *call) error {
	path, err := c.takeVersion(c.r.URL.Path)
	if err != nil {
		return err
	}
	rt, name := s.routes.find(c.r.Method, path)
	if rt == nil {
		return errNoPage
	}
	if c.version < rt.since {
		return errdefs.New(errdefs.Invalid, "%q requires API version %s, but the requested API version is %s", c.r.Method+" "+path, rt.since, c.version)
	}
	if s.refuse != nil && rt.pattern != "/_ping" && rt.pattern != "/version" {
		return s.refuse
	}
	c.name = name
	if c.query, err = url.ParseQuery(c.r.URL.RawQuery); err != nil {
		return errdefs.Wrap(errdefs.Invalid, err, "malformed query: %v", err)
	}
	return rt.serve(s, c)
}

// status starts the answer with a bare status.
func (c *call) status(code int) {
	c.started = true
	c.w.WriteHeader(code)
}

// json answers with v.
func (c *call) json(code int, v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil { // before anything is sent, so that it can still be a 500
		return errdefs.Wrap(errdefs.Internal, err, "encode the answer")
	}
	c.w.Header().Set("Content-Type", "application/json")
	c.status(code)
	_, err := c.w.Write(b.Bytes())
	return inBand(err)
}

// decode reads the request's JSON body into v. An absent body leaves v as it is.
func (c *call) decode(v any) error {
	if err := c.checkJSON(); err != nil {
		return err
	}
	if c.r.Body == nil || c.r.ContentLength == 0 {
		return nil
	}
	dec := json.NewDecoder(http.MaxBytesReader(c.w, c.r.Body, MaxBody))
	if err := dec.Decode(v); err != nil {
		return badJSON(err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		if tooLong(err) {
			return badJSON(err)
		}
		return errdefs.New(errdefs.Invalid, "unexpected content after JSON")
	}
	return nil
}

func tooLong(err error) bool {
	var long *http.MaxBytesError
	return errors.As(err, &long)
}

func badJSON(err error) error {
	switch {
	case tooLong(err):
		return withStatus(http.StatusRequestEntityTooLarge, errdefs.Wrap(errdefs.Invalid, err, "the request's body is longer than %d bytes", MaxBody))
	case errors.Is(err, io.EOF):
		return errdefs.Wrap(errdefs.Invalid, err, "invalid JSON: got EOF while reading request body")
	}
	return errdefs.Wrap(errdefs.Invalid, err, "invalid JSON: %v", err)
}

// checkJSON refuses a body that is not declared as JSON, as dockerd does.
func (c *call) checkJSON() error {
	ct := c.r.Header.Get("Content-Type")
	if ct == "" && (c.r.Body == nil || c.r.ContentLength == 0) {
		return nil
	}
	t, _, err := mime.ParseMediaType(ct)
	if err != nil {
		return errdefs.Wrap(errdefs.Invalid, err, "malformed Content-Type header (%s): %v", ct, err)
	}
	if t != "application/json" {
		return errdefs.New(errdefs.Invalid, "unsupported Content-Type header (%s): must be 'application/json'", ct)
	}
	return nil
}
