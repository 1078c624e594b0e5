package registrytest

import "context"

type connKey struct{}

// withConn notes the number of a connection, counted from 1.
func withConn(ctx context.Context, number int64) context.Context {
	return context.WithValue(ctx, connKey{}, number)
}

// connOf is the number of a request's connection; 0 where no Server took it.
func connOf(ctx context.Context) int64 {
	n, _ := ctx.Value(connKey{}).(int64)
	return n
}
