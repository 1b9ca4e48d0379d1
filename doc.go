// Package flowaudit is the root of the module and holds the tests of its structure.
package flowaudit
