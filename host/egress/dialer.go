package egress

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"golang.org/x/net/http/httpproxy"
	"golang.org/x/net/proxy"

	"dhow/internal/errdefs"
)

// NewDialer returns the host's dialer: its resolver and, as the environment
// variables HTTPS_PROXY, HTTP_PROXY and NO_PROXY say (upper or lower case), its
// proxies: http, https and socks5. A stream may be anything, so an HTTP proxy
// is always asked to CONNECT. Loopback addresses never go through a proxy.
func NewDialer() Dialer { return newDialer(httpproxy.FromEnvironment()) }

func newDialer(c *httpproxy.Config) *dialer {
	return &dialer{proxy: c.ProxyFunc(), direct: net.Dialer{KeepAlive: 30 * time.Second}}
}

type dialer struct {
	proxy  func(*url.URL) (*url.URL, error)
	direct net.Dialer
}

func (d *dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	u := &url.URL{Scheme: "https", Host: address}
	if _, port, err := net.SplitHostPort(address); err == nil && port == "80" {
		u.Scheme = "http"
	}
	via, err := d.proxy(u)
	if err != nil {
		return nil, errdefs.Wrap(errdefs.Invalid, err, "the host's proxy settings are malformed: %v", err)
	}
	if via == nil {
		return d.direct.DialContext(ctx, network, address)
	}
	switch via.Scheme {
	case "http", "https":
		return d.connect(ctx, via, address)
	case "socks5", "socks5h":
		p, err := proxy.FromURL(via, &d.direct)
		if err != nil {
			return nil, errdefs.Wrap(errdefs.Invalid, err, "the host's proxy settings are malformed: %v", err)
		}
		return p.(proxy.ContextDialer).DialContext(ctx, network, address)
	}
	return nil, errdefs.New(errdefs.Invalid, "the host's proxy settings name a proxy of the unknown kind %q", via.Scheme)
}

// connect asks the HTTP proxy for a tunnel to address (RFC 9110 §9.3.6).
func (d *dialer) connect(ctx context.Context, via *url.URL, address string) (_ net.Conn, err error) {
	port := via.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[via.Scheme]
	}
	at := net.JoinHostPort(via.Hostname(), port)
	c, err := d.direct.DialContext(ctx, "tcp", at)
	if err != nil {
		return nil, errdefs.Wrap(errdefs.Unavailable, err, "the host's proxy %s cannot be reached: %v", at, err)
	}
	raw := c
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() && err == nil {
			err = ctx.Err() // the deadline was set behind our back
		}
		if err != nil {
			_ = raw.Close()
		}
	}()
	if via.Scheme == "https" {
		t := tls.Client(c, &tls.Config{ServerName: via.Hostname(), MinVersion: tls.VersionTLS12})
		if err := t.HandshakeContext(ctx); err != nil {
			return nil, errdefs.Wrap(errdefs.Unavailable, err, "the host's proxy %s cannot be reached: %v", at, err)
		}
		c = t
	}
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: address}, Host: address, Header: http.Header{}}
	if u := via.User; u != nil {
		password, _ := u.Password()
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(u.Username()+":"+password)))
	}
	if err := req.Write(c); err != nil {
		return nil, errdefs.Wrap(errdefs.Unavailable, err, "the host's proxy %s did not answer: %v", at, err)
	}
	in := bufio.NewReader(c)
	resp, err := http.ReadResponse(in, req)
	if err != nil {
		return nil, errdefs.Wrap(errdefs.Unavailable, err, "the host's proxy %s did not answer: %v", at, err)
	}
	if resp.StatusCode != http.StatusOK {
		class := errdefs.Unavailable
		if resp.StatusCode == http.StatusProxyAuthRequired || resp.StatusCode == http.StatusForbidden {
			class = errdefs.Denied
		}
		return nil, errdefs.New(class, "the host's proxy %s refused a connection to %s: %s", at, address, resp.Status)
	}
	if in.Buffered() > 0 {
		return &buffered{Conn: c, in: in}, nil
	}
	return c, nil
}

// buffered is a connection whose first bytes came with the proxy's answer.
type buffered struct {
	net.Conn
	in *bufio.Reader
}

func (b *buffered) Read(p []byte) (int, error) { return b.in.Read(p) }

// CloseWrite half-closes the stream.
func (b *buffered) CloseWrite() error {
	w, ok := b.Conn.(interface{ CloseWrite() error })
	if !ok {
		return fmt.Errorf("half-close: %w", net.ErrClosed)
	}
	return w.CloseWrite()
}
