// Package spool keeps batches on disk until they are acknowledged, bounded in size and age.
package spool
