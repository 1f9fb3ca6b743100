//go:build linux

package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/distribution/reference"
)

// Options say how to reach registries. Times that are zero have defaults.
type Options struct {
	Dial      func(ctx context.Context, network, addr string) (net.Conn, error)
	RootCAs   *x509.CertPool // nil: the system's
	UserAgent string
	Log       *slog.Logger

	ConnectTimeout time.Duration // to connect, and again for TLS; 10 s
	HeaderTimeout  time.Duration // from the request to the response's header; 10 s
	StallTimeout   time.Duration // longest silence of a body; 10 s
	GiveUp         time.Duration // since the last byte, over all attempts; 20 s
}

// Auth holds the credentials for one registry, as the Docker API carries them.
type Auth struct {
	Username, Password string
	IdentityToken      string // refresh token, instead of a password
	RegistryToken      string // ready bearer token
	ServerAddress      string
}

// Client speaks to registries. It may be used by many goroutines.
type Client struct {
	o         Options
	transport *http.Transport

	mu      sync.Mutex
	schemes map[string]string // host → how a ping succeeded last
}

// New returns a client. It does no I/O.
func New(o Options) *Client {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&o.ConnectTimeout, 10*time.Second)
	def(&o.HeaderTimeout, 10*time.Second)
	def(&o.StallTimeout, 10*time.Second)
	def(&o.GiveUp, 20*time.Second)
	if o.Dial == nil {
		o.Dial = (&net.Dialer{}).DialContext
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Client{
		o:       o,
		schemes: make(map[string]string),
		transport: &http.Transport{
			DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				ctx, cancel := context.WithTimeout(ctx, o.ConnectTimeout)
				defer cancel()
				return o.Dial(ctx, network, addr)
			},
			TLSClientConfig:       &tls.Config{RootCAs: o.RootCAs, MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout:   o.ConnectTimeout,
			ResponseHeaderTimeout: o.HeaderTimeout,
			IdleConnTimeout:       20 * time.Second,
			MaxIdleConnsPerHost:   8,
			DisableCompression:    true, // a blob is what it is
			ReadBufferSize:        64 << 10,
			// HTTP/1: one connection per layer fills a link better than streams
			// that share one flow-control window.
			TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
		},
	}
}

// Close closes idle connections.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// Repository is one repository of a registry, with credentials.
type Repository struct {
	c    *Client
	name reference.Named
	host string // of the registry's API
	path string
	auth *authorizer
}

// hubHost serves Docker Hub's API.
const hubHost = "registry-1.docker.io"

// Repository returns the repository that name is in. It does no I/O.
func (c *Client) Repository(name reference.Named, auth Auth) *Repository {
	r := &Repository{c: c, name: reference.TrimNamed(name), host: reference.Domain(name), path: reference.Path(name)}
	if r.host == "docker.io" {
		r.host = hubHost
	}
	r.auth = &authorizer{c: c, host: r.host, creds: auth, scope: "repository:" + r.path + ":pull"}
	return r
}

// isLoopback reports whether plain HTTP may be spoken to the host, host or
// host:port.
func isLoopback(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.Trim(name, "[]")
	if name == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(name)
	return err == nil && ip.IsLoopback()
}

// get sends a GET to a path below the repository, with authorization, and
// returns the response of a status in want; all else is an error. It follows
// redirects.
func (r *Repository) get(ctx context.Context, path string, header http.Header, want ...int) (*http.Response, error) {
	scheme, err := r.auth.prepare(ctx)
	if err != nil {
		return nil, err
	}
	url := scheme + "://" + r.host + "/v2/" + r.path + path
	resp, err := r.send(ctx, url, header)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusUnauthorized {
		again, aerr := r.auth.renew(ctx, resp)
		if aerr != nil {
			closeBody(resp)
			return nil, aerr
		}
		if again {
			closeBody(resp)
			if resp, err = r.send(ctx, url, header); err != nil {
				return nil, err
			}
		}
	}
	for _, s := range want {
		if resp.StatusCode == s {
			return resp, nil
		}
	}
	return nil, statusError(resp)
}

func (r *Repository) send(ctx context.Context, url string, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	client := http.Client{Transport: r.auth}
	return client.Do(req)
}

// closeBody reads a little of what is left, so that the connection can be used
// again, and closes.
func closeBody(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10)
	_ = resp.Body.Close()
}

// retry calls do until it succeeds, fails for good, or has failed too often.
func (c *Client) retry(ctx context.Context, what string, do func() error) error {
	start := time.Now()
	for attempt := 1; ; attempt++ {
		err := do()
		if err == nil || ctx.Err() != nil || !temporary(err) || attempt == maxAttempts || time.Since(start) > c.o.GiveUp {
			return err
		}
		wait := backoff(attempt, err)
		if time.Since(start)+wait > c.o.GiveUp {
			return err
		}
		c.o.Log.Debug("registry request failed, trying again", "what", what, "attempt", attempt, "wait", wait, "error", err)
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// maxAttempts is how often something is tried without any progress.
const maxAttempts = 5

// backoff returns the pause before the next attempt: what the registry asks
// for, or a quarter of a second, doubling.
func backoff(attempt int, err error) time.Duration {
	var s *StatusError
	if errors.As(err, &s) && s.RetryAfter > 0 {
		return s.RetryAfter
	}
	return 250 * time.Millisecond << min(attempt-1, 4)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
