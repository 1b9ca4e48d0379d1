// Package notify tells others of alerts: it keeps what is not delivered on disk and tries again.
package notify
