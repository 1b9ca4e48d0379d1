// Package evidence proves that recorded flows are those that were once stored, all of them and in their order.
package evidence
