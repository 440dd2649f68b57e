'use strict'
// What Haraka does with the mail of the tests: it tells addresses apart, and stores what it accepts.
//
// Copied by tests/servers/haraka.py to where Haraka looks for plugins. A message appears in new/ of
// the Maildir in one step, under three fields: Return-Path and Delivered-To, written here, and
// Haraka's own Received.

const fs = require('fs')
const path = require('path')
const DSN = require('haraka-dsn')

exports.register = function () {
    this.maildir = this.config.get('maildir')
}

// No test looks anything up in DNS.
exports.hook_lookup_rdns = (next) => next(OK, 'client.test')

exports.hook_rcpt = (next, connection, [recipient]) => {
    const address = recipient.address
    if (!address.endsWith('@ok.test')) next(DENY, DSN.relaying_denied())
    else if (address === 'nobody@ok.test') next(DENY, DSN.no_such_user())
    else if (address === 'defer@ok.test') next(DENYSOFT, DSN.sec_unauthorized('come back later', 451))
    else next(OK)
}

exports.hook_queue = function (next, connection) {
    const { uuid, mail_from, rcpt_to, message_stream } = connection.transaction
    const unfinished = path.join(this.maildir, 'tmp', uuid)
    const file = fs.createWriteStream(unfinished)
    const recipients = rcpt_to.map((recipient) => recipient.address).join(', ')
    file.write(`Return-Path: <${mail_from.address}>\r\nDelivered-To: ${recipients}\r\n`)
    file.once('error', (error) => next(DENYSOFT, error.message))
    file.once('finish', () => {
        fs.rename(unfinished, path.join(this.maildir, 'new', uuid), (error) => {
            if (error) next(DENYSOFT, error.message)
            else next(OK)
        })
    })
    message_stream.pipe(file)
}
