//go:build linux

package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"dhow/internal/errdefs"
)

// Login asks a registry whether it takes the credentials, as dockerd does: by
// GET /v2/ with them, or with the token that its token server gives for them.
// auth.ServerAddress names the registry, with or without a scheme; "" and the
// names of Docker Hub are Docker Hub. Plain HTTP is spoken to loopback
// addresses only.
//
// It returns the identity token (refresh token) that the token server gave to
// be kept instead of the password; "" if it gave none. Credentials that are
// refused are an error of class Denied, a registry that cannot be reached or
// does not answer in time one of class Unavailable.
func (c *Client) Login(ctx context.Context, auth Auth) (identityToken string, err error) {
	host, err := registryHost(auth.ServerAddress)
	if err != nil {
		return "", err
	}
	auth.RegistryToken = "" // a ready token says nothing of the name and the password
	a := &authorizer{c: c, host: host, creds: auth, refresh: auth.IdentityToken, offline: true}
	scheme, err := a.prepare(ctx)
	if err != nil {
		return "", explainLogin(ctx, a, err)
	}
	target := scheme + "://" + host + "/v2/"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return "", err
	}
	client := http.Client{Transport: a}
	resp, err := client.Do(req)
	if err != nil {
		return "", explainLogin(ctx, a, err)
	}
	closeBody(resp)
	if resp.StatusCode == http.StatusOK {
		return a.refresh, nil
	}
	class := errdefs.Unavailable
	if resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden {
		class = errdefs.Denied
	}
	return "", errdefs.New(class, "login attempt to %s failed with status: %d %s", target, resp.StatusCode, http.StatusText(resp.StatusCode))
}

// registryHost returns the host, or host:port, that serves a registry's API.
func registryHost(address string) (string, error) {
	if address == "" {
		return hubHost, nil
	}
	if !strings.HasPrefix(address, "https://") && !strings.HasPrefix(address, "http://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil {
		return "", errdefs.Wrap(errdefs.Invalid, err, "unable to parse server address: %v", err)
	}
	switch u.Host {
	case "":
		return "", errdefs.New(errdefs.Invalid, "unable to parse server address: %q names no host", address)
	case "docker.io", "index.docker.io":
		return hubHost, nil
	}
	return u.Host, nil
}

// explainLogin gives an error of a login its class and docker's sentence: what
// the token server said, behind the address that was to be reached.
func explainLogin(ctx context.Context, a *authorizer, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var s *StatusError
	if errors.As(err, &s) {
		class := errdefs.Unavailable
		if s.Status == http.StatusUnauthorized || s.has("UNAUTHORIZED") || s.has("DENIED") {
			class = errdefs.Denied
		}
		scheme := a.scheme
		if scheme == "" {
			scheme = "https"
		}
		return errdefs.Wrap(class, err, "%s", fmt.Sprintf("Get %q: %s", scheme+"://"+a.host+"/v2/", s))
	}
	return errdefs.Wrap(errdefs.Unavailable, err, "%s", err)
}
