//go:build linux

package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
)

// authorizer is a RoundTripper that adds the credentials of one repository, on
// requests to the registry's own host only.
type authorizer struct {
	c     *Client
	host  string
	creds Auth
	scope string // "" for a login, which is to nothing in particular

	offline bool   // ask the token server for an identity token
	refresh string // the identity token that it gave

	mu        sync.Mutex // held while a ping or a token is on its way
	scheme    string
	challenge challenge
	header    string // Authorization
	ready     bool
}

// challenge is what a WWW-Authenticate header asks for.
type challenge struct {
	scheme string // basic or bearer, "" for none
	params map[string]string
}

// clientID is what token servers know this program by.
const clientID = "dhow"

// errNoBasic is docker's text for a registry that wants a password.
var errNoBasic = errors.New("no basic auth credentials")

// RoundTrip implements http.RoundTripper.
func (a *authorizer) RoundTrip(req *http.Request) (*http.Response, error) {
	a.mu.Lock()
	header, scheme := a.header, a.scheme
	a.mu.Unlock()
	req = req.Clone(req.Context())
	req.Header.Set("User-Agent", a.c.o.UserAgent)
	req.Header.Del("Authorization") // what a redirect took along
	if header != "" && req.URL.Host == a.host && req.URL.Scheme == scheme {
		req.Header.Set("Authorization", header)
	}
	return a.c.transport.RoundTrip(req)
}

// prepare finds out, once, which scheme the registry speaks and how it wants
// to be authorized.
func (a *authorizer) prepare(ctx context.Context) (scheme string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ready {
		return a.scheme, nil
	}
	schemes := []string{"https"}
	if isLoopback(a.host) {
		schemes = []string{"https", "http"}
		if a.c.knownScheme(a.host) == "http" {
			schemes = []string{"http", "https"}
		}
	}
	for _, s := range schemes {
		if a.challenge, err = a.ping(ctx, s); err == nil {
			a.scheme = s
			a.c.learnScheme(a.host, s)
			break
		}
		if ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		return "", unreachable{err}
	}
	if err := a.authorize(ctx, a.scope); err != nil {
		return "", err
	}
	a.ready = true
	return a.scheme, nil
}

// unreachable is the error of a ping; it is not tried again, for ping did.
type unreachable struct{ error }

func (u unreachable) Unwrap() error { return u.error }

func (c *Client) knownScheme(host string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.schemes[host]
}

func (c *Client) learnScheme(host, scheme string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.schemes[host] = scheme
}

// ping asks the registry for its version and returns its challenge. Only an
// answer is a reason to ask again: a registry that cannot be reached, or is
// silent, has taken its time-out already.
func (a *authorizer) ping(ctx context.Context, scheme string) (ch challenge, err error) {
	err = a.c.retry(ctx, "ping", func() error {
		resp, err := a.do(ctx, http.MethodGet, scheme+"://"+a.host+"/v2/", nil, "")
		if err != nil {
			return unreachable{err}
		}
		switch resp.StatusCode {
		case http.StatusOK:
		case http.StatusUnauthorized:
			ch = parseChallenge(resp.Header.Values("WWW-Authenticate"))
		case http.StatusNotFound:
			// Some serve /v2/… without /v2/ itself.
		default:
			return statusError(resp)
		}
		closeBody(resp)
		return nil
	})
	return ch, err
}

// do sends one request without the repository's authorization.
func (a *authorizer) do(ctx context.Context, method, target string, form url.Values, basic string) (*http.Response, error) {
	var body io.Reader
	if form != nil {
		body = strings.NewReader(form.Encode())
	}
	req, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", a.c.o.UserAgent)
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if basic != "" {
		req.SetBasicAuth(a.creds.Username, a.creds.Password)
	}
	client := http.Client{Transport: a.c.transport}
	return client.Do(req)
}

// authorize makes the Authorization header for the challenge.
func (a *authorizer) authorize(ctx context.Context, scope string) error {
	if a.creds.RegistryToken != "" {
		a.header = "Bearer " + a.creds.RegistryToken
		return nil
	}
	switch a.challenge.scheme {
	case "bearer":
		token, err := a.token(ctx, scope)
		if err != nil {
			return err
		}
		a.header = "Bearer " + token
	case "basic":
		if a.creds.Username != "" {
			req := http.Request{Header: make(http.Header)}
			req.SetBasicAuth(a.creds.Username, a.creds.Password)
			a.header = req.Header.Get("Authorization")
		}
	}
	return nil
}

// renew looks at a 401 and reports whether to send the request again: after
// a token expired, or for another scope than the one guessed.
func (a *authorizer) renew(ctx context.Context, resp *http.Response) (bool, error) {
	ch := parseChallenge(resp.Header.Values("WWW-Authenticate"))
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case ch.scheme == "basic" && a.creds.Username == "":
		return false, &url.Error{Op: "Get", URL: resp.Request.URL.String(), Err: errNoBasic}
	case ch.scheme == "basic":
		again := a.challenge.scheme != "basic" && a.creds.RegistryToken == ""
		a.challenge = ch
		return again, a.authorize(ctx, a.scope)
	case ch.scheme == "bearer" && a.creds.RegistryToken == "" && ch.params["error"] != "insufficient_scope":
		a.challenge = ch
		scope := a.scope
		if s := ch.params["scope"]; s != "" {
			scope = s
		}
		return true, a.authorize(ctx, scope)
	}
	return false, nil
}

// token gets a bearer token from the token server that the challenge names.
func (a *authorizer) token(ctx context.Context, scope string) (string, error) {
	realm, err := url.Parse(a.challenge.params["realm"])
	if err != nil || realm.Host == "" || (realm.Scheme != "https" && (realm.Scheme != "http" || a.scheme == "https")) {
		return "", fmt.Errorf("the registry %s names no usable token server: %q", a.host, a.challenge.params["realm"])
	}
	values := url.Values{}
	if scope != "" {
		values.Set("scope", scope)
	}
	if s := a.challenge.params["service"]; s != "" {
		values.Set("service", s)
	}
	var token string
	err = a.c.retry(ctx, "token", func() error {
		token, err = a.fetchToken(ctx, realm, values)
		return err
	})
	return token, err
}

func (a *authorizer) fetchToken(ctx context.Context, realm *url.URL, values url.Values) (string, error) {
	var resp *http.Response
	var err error
	if a.creds.IdentityToken != "" {
		form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {a.creds.IdentityToken}, "client_id": {clientID}}
		for k, v := range values {
			form[k] = v
		}
		resp, err = a.do(ctx, http.MethodPost, realm.String(), form, "")
	} else {
		u := *realm
		q := u.Query()
		for k, v := range values {
			q[k] = v
		}
		if a.creds.Username != "" {
			q.Set("account", a.creds.Username)
		}
		if a.offline {
			q.Set("offline_token", "true")
			q.Set("client_id", clientID)
		}
		u.RawQuery = q.Encode()
		resp, err = a.do(ctx, http.MethodGet, u.String(), nil, a.creds.Username)
	}
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", statusError(resp)
	}
	defer closeBody(resp)
	var t struct {
		Token        string `json:"token"`
		AccessToken  string `json:"access_token"`
		RefreshToken string `json:"refresh_token"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&t); err != nil {
		return "", fmt.Errorf("token server %s: %w", realm.Host, err)
	}
	if t.RefreshToken != "" {
		a.refresh = t.RefreshToken
	}
	if t.Token == "" {
		t.Token = t.AccessToken
	}
	if t.Token == "" {
		return "", errors.New("authorization server did not include a token in the response")
	}
	return t.Token, nil
}

// parseChallenge returns the first bearer or basic challenge of the headers.
func parseChallenge(headers []string) challenge {
	for _, h := range headers {
		scheme, rest, _ := strings.Cut(strings.TrimSpace(h), " ")
		scheme = strings.ToLower(scheme)
		if scheme != "bearer" && scheme != "basic" {
			continue
		}
		return challenge{scheme, parseParams(rest)}
	}
	return challenge{}
}

// parseParams reads key="value" pairs divided by commas; values may be tokens
// as well (RFC 9110, section 11.2).
func parseParams(s string) map[string]string {
	params := make(map[string]string)
	for {
		s = strings.TrimLeft(s, " \t,")
		key, rest, ok := strings.Cut(s, "=")
		if !ok {
			return params
		}
		key = strings.ToLower(strings.TrimSpace(key))
		rest = strings.TrimLeft(rest, " \t")
		var value strings.Builder
		if strings.HasPrefix(rest, `"`) {
			i := 1
			for ; i < len(rest) && rest[i] != '"'; i++ {
				if rest[i] == '\\' && i+1 < len(rest) {
					i++
				}
				value.WriteByte(rest[i])
			}
			s = rest[min(i+1, len(rest)):]
		} else {
			end := strings.IndexAny(rest, ", \t")
			if end < 0 {
				end = len(rest)
			}
			value.WriteString(rest[:end])
			s = rest[end:]
		}
		params[key] = value.String()
	}
}
