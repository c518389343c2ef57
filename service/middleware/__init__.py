"""Small pure-ASGI layers around the application, outermost first.

RequestId     names the request
Farewell      ends its connection, once the server shuts down
AccessLog     counts, times and logs it
Failures      answers what nobody else answered
Version       says which weights the server serves
SecurityHeaders  says what a browser may do with the answer
LocalNames    keeps web pages of strangers out of a server that asks nobody for a key
Authentication  asks for the key, where there are any
BodyLimit     reads no more than it must, and waits no longer
"""
