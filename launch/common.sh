# shellcheck shell=bash
# Functions that the scripts here source. Options are always --name=value.

# usage: prints the comment at the head of the running script.
usage() { awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"; }

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# whole NAME VALUE: fails unless an option is a whole number (0 or more).
whole() { [[ $2 =~ ^[0-9]+$ ]] || fail "$1=$2 must be a whole number"; }

# local_path NAME VALUE: prints a path that a user names, with ~ expanded; fails where it is empty or
# an address such as gs://... (files/paths.py does the same for the Python verbs).
local_path() {
  [[ -n $2 ]] || fail "$1= is empty: it must name a file or folder"
  [[ ! $2 =~ ^[A-Za-z][A-Za-z0-9+.-]+:/ ]] || fail "$1=$2 is an address; it must be a local path"
  # shellcheck disable=SC2088
  case $2 in
    '~' | '~/'*) printf '%s\n' "$HOME${2#'~'}" ;;
    '~'*) fail "$1=$2: only ~ and ~/ are known here" ;;
    *) printf '%s\n' "$2" ;;
  esac
}

# quote ARG...: prints one line that a shell reads back as the same arguments.
quote() {
  local arg rest line=
  for arg; do
    if [[ ! $arg =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
      rest=$arg arg=
      while [[ $rest == *\'* ]]; do
        arg+="${rest%%\'*}'\\''"
        rest=${rest#*\'}
      done
      arg="'$arg$rest'"
    fi
    line+="${line:+ }$arg"
  done
  printf '%s\n' "$line"
}

# run COMMAND...: runs it, or prints it under --dry-run.
run() {
  if [ -n "${dry_run:-}" ]; then
    quote "$@"
  else
    "$@"
  fi
}
