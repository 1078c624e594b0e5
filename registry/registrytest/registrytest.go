// Package registrytest is an OCI registry in the process that counts requests and bytes, throttles, and injects faults.
package registrytest
