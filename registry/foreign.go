package registry

import (
	"context"
	"net"
	"net/netip"
	"net/url"
)

// foreignAllowed tells whether an address that a descriptor gives may be asked. Who wrote the
// manifest must not make this machine ask what only it can reach: nothing but https counts,
// and no name of this machine, its links or the cloud's metadata service (169.254.169.254, RFC 3927),
// unless the registry is on this machine itself, where http does too. Names are looked up for that; one that cannot be is left to the
// proxy, if there is one. A server that changes its answer in between gets a GET without
// credentials, whose answer only counts if it has the digest.
func (c *client) foreignAllowed(ctx context.Context, u *url.URL) bool {
	if isLoopback(c.host) && isLoopback(u.Host) {
		return u.Scheme == "https" || u.Scheme == "http"
	}
	if u.Host == "" || u.Scheme != "https" || isLoopback(u.Host) {
		return false
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", u.Hostname())
	if err != nil {
		return ctx.Err() == nil
	}
	for _, a := range addrs {
		if !isPublic(a.Unmap()) {
			return false
		}
	}
	return true
}

// isPublic tells whether an address is another machine's, by way of a router. Private networks (RFC 1918) are:
// companies keep foreign layers there.
func isPublic(a netip.Addr) bool {
	return !a.IsLoopback() && !a.IsUnspecified() && !a.IsLinkLocalUnicast() && !a.IsMulticast()
}
